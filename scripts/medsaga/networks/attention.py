"""Exact attention in little memory: the scores of all pairs of tokens never lie in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Attention as ExplicitAttention
from segment_anything.modeling.image_encoder import get_rel_pos
from segment_anything.modeling.transformer import Attention as ExplicitTwoWayAttention
from torch.nn import functional as F

__all__ = ["RelPosAttention", "TwoWayAttention", "folded_attention", "tiled_attention", "unit_vectors"]

# Scores that the tiled form holds at a time: 4 MiB in float32, about what a core's caches hold.
_TILE = 1 << 20


class RelPosAttention(ExplicitAttention):
    """Attention of Segment Anything's image encoder, with decomposed relative positions, in little memory.

    Parameters, names and, up to rounding, the result are those of ``segment_anything``, but the N × N scores are never
    held for all heads and images. A CPU uses :func:`tiled_attention`, other devices :func:`folded_attention`.

    Args:
        dim: number of channels C.
        num_heads: number of heads n; each has d = C / n channels.
        input_size: height and width of the token grid that the tables of relative positions are for.

    Shape:
        - input, output: (B, H, W, C)

    Source:
        Segment Anything (arXiv 2304.02643), appendix A; its decomposed relative positions are those of MViTv2
        (arXiv 2112.01526).
    """

    def __init__(self, dim: int, num_heads: int, input_size: tuple[int, int]) -> None:
        super().__init__(dim, num_heads, qkv_bias=True, use_rel_pos=True, input_size=input_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        table_h = get_rel_pos(height, height, self.rel_pos_h).to(qkv.dtype)
        table_w = get_rel_pos(width, width, self.rel_pos_w).to(qkv.dtype)
        attention = tiled_attention if x.device.type == "cpu" else folded_attention
        return self.proj(attention(qkv, table_h, table_w).flatten(-2))


class TwoWayAttention(ExplicitTwoWayAttention):
    """Attention of Segment Anything's mask decoder by PyTorch's fused kernels; arguments and parameters are the same.

    Shape:
        - q: (B, N, C); k, v: (B, M, C); output: (B, N, C)
    """

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        return self.out_proj(self._recombine_heads(F.scaled_dot_product_attention(q, k, v)))


# --- by fused kernels -----------------------------------------------------------------------------------------------


def folded_attention(
    qkv: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor, units: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention with decomposed relative positions as one plain scaled dot product of wider heads.

    The score of query i and key j in row y and column x, ``scale q_i·k_j + h_i[y] + w_i[x]``, is the inner product of
    ``[scale q_i, h_i, w_i]`` and ``[k_j, e_y, e_x]`` with unit vectors e. So kernels can be used that support no bias
    and hold no N × N scores.

    Args:
        qkv: queries, keys and values.
        table_h: position vectors of the H rows as seen from each row (``get_rel_pos``).
        table_w: position vectors of the W columns as seen from each column.
        units: :func:`unit_vectors` of H and W; None makes them.

    Returns:
        The heads' results.

    Shape:
        - qkv: (B, H, W, 3, n, d); table_h: (H, H, d); table_w: (W, W, d)
        - output: (B, H, W, n, d)
    """
    height, width, _, _, dim = qkv.shape[1:]
    q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)  # (B, n, H, W, d) each
    rel_h, rel_w = _positions(q, table_h, table_w)
    if units is None:
        units = unit_vectors(height, width, dtype=k.dtype, device=k.device)
    units = units.expand(*k.shape[:2], -1, -1, -1)
    wide_q = torch.cat([q * dim**-0.5, rel_h, rel_w], dim=-1).flatten(2, 3)
    wide_k = torch.cat([k, units], dim=-1).flatten(2, 3)
    wide_v = v.flatten(2, 3)
    # The kernels want heads of equal width, a multiple of 8.
    wide = -(-wide_q.shape[-1] // 8) * 8
    wide_q, wide_k, wide_v = (F.pad(x, (0, wide - x.shape[-1])) for x in (wide_q, wide_k, wide_v))
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)[..., :dim]
    return out.transpose(1, 2).unflatten(1, (height, width))


def unit_vectors(height: int, width: int, **options: Any) -> torch.Tensor:
    """``[e_y, e_x]`` of the token in row y and column x, with options of ``torch.eye``: (H, W, H + W)."""
    rows = torch.eye(height, **options)[:, None].expand(-1, width, -1)
    return torch.cat([rows, torch.eye(width, **options).expand(height, -1, -1)], dim=-1)


# --- in tiles -------------------------------------------------------------------------------------------------------


def tiled_attention(qkv: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> torch.Tensor:
    """Attention with decomposed relative positions, a tile of the scores at a time; for the CPU.

    For backward it keeps its arguments, its result and the logarithm of each softmax's denominator, and computes the
    tiles again. On a CPU that is faster than :func:`folded_attention`, whose heads are wider and whose kernel has a
    slow backward. Softmax and sums are in float32 whatever the arguments' precision.

    Args:
        qkv: as in :func:`folded_attention`; so are the other arguments, the result and all shapes.
        table_h: position vectors of rows.
        table_w: position vectors of columns.

    Returns:
        The heads' results.

    Source:
        FlashAttention (arXiv 2205.14135), appendix B, with whole rows of scores instead of blocks of keys.
    """
    return _tiled(qkv, table_h, table_w)[0]


def _tiled_forward(
    qkv: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the heads' results (B, H, W, n, d) and the log-sum-exp of their scores (B, n, H, W)."""
    out, log_sum = _tiled_empty(qkv, table_h, table_w)
    for images, heads, tiles in _tiles(qkv):
        q, k, v = _heads(qkv[images, :, :, :, heads])
        group_out = torch.empty_like(q)
        group_log_sum = torch.empty(q.shape[:-1], dtype=log_sum.dtype)
        for rows in tiles:
            scores = _scores(q[:, rows], k, *_positions(q[:, rows], table_h[rows], table_w))
            largest = scores.amax(-1, keepdim=True)
            denominator = scores.sub_(largest).exp_().sum(-1, keepdim=True)
            weighted = torch.bmm(scores.to(v.dtype), v.flatten(1, 2)) / denominator
            group_out[:, rows] = weighted.view_as(group_out[:, rows])
            group_log_sum[:, rows] = (largest + denominator.log()).view_as(group_log_sum[:, rows])
        out[images, :, :, heads] = _unheads(group_out, out[images, :, :, heads])
        log_sum[images, heads] = group_log_sum.view_as(log_sum[images, heads])
    return out, log_sum


def _tiled_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    table_h: torch.Tensor,
    table_w: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of qkv, table_h and table_w, given that of the heads' results."""
    exact = log_sum.dtype
    scale = qkv.shape[-1] ** -0.5
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    grad_h, grad_w = torch.zeros_like(table_h, dtype=exact), torch.zeros_like(table_w, dtype=exact)
    for images, heads, tiles in _tiles(qkv):
        q, k, v = _heads(qkv[images, :, :, :, heads])
        group_grad, group_out = _heads(torch.stack([grad[images, :, :, heads], out[images, :, :, heads]], dim=3))
        group_log_sum = log_sum[images, heads].flatten(0, 1)  # (G, H, W)
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=exact) for x in (q, k, v))
        for rows in tiles:
            rel_h, rel_w = _positions(q[:, rows], table_h[rows], table_w)
            weights = _scores(q[:, rows], k, rel_h - group_log_sum[:, rows, :, None], rel_w).exp_()
            tile_grad = group_grad[:, rows].flatten(1, 2)
            grad_v += torch.bmm(weights.to(v.dtype).transpose(1, 2), tile_grad).view_as(v)
            # gradient of the scores (FlashAttention, appendix B): weights (dP - dO·O)
            delta = (group_grad[:, rows].to(exact) * group_out[:, rows]).sum(-1).flatten(1)[..., None]
            grad_scores = torch.bmm(tile_grad, v.flatten(1, 2).transpose(1, 2)).to(exact).sub_(delta).mul_(weights)
            by_position = grad_scores.view(*rel_h.shape, -1)
            grad_rel_h, grad_rel_w = by_position.sum(-1).to(q.dtype), by_position.sum(-2).to(q.dtype)
            grad_scores = grad_scores.to(q.dtype)
            grad_q[:, rows] = (
                torch.bmm(grad_scores, k.flatten(1, 2)).mul_(scale).view_as(q[:, rows])
                + torch.einsum("gywk,ykd->gywd", grad_rel_h, table_h[rows])
                + torch.einsum("gywk,wkd->gywd", grad_rel_w, table_w)
            )
            grad_k += torch.bmm(grad_scores.transpose(1, 2), q[:, rows].flatten(1, 2)).mul_(scale).view_as(k)
            grad_h[rows] += torch.einsum("gywk,gywd->ykd", grad_rel_h, q[:, rows])
            grad_w += torch.einsum("gywk,gywd->wkd", grad_rel_w, q[:, rows])
        for i, group in enumerate((grad_q, grad_k, grad_v)):
            grad_qkv[images, :, :, i, heads] = _unheads(group, qkv[images, :, :, i, heads])
    return grad_qkv, grad_h.to(table_h.dtype), grad_w.to(table_w.dtype)


def _tiles(qkv: torch.Tensor) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Slices of images and of heads to treat at once, and of the rows of query tokens to treat one after another."""
    images, height, width, _, heads, _ = qkv.shape
    tokens = height * width
    rows = min(height, max(1, _TILE // (width * tokens)))
    some_heads = min(heads, max(1, _TILE // (rows * width * tokens)))
    some_images = max(1, _TILE // (rows * width * tokens * heads))
    tiles = [slice(y, min(y + rows, height)) for y in range(0, height, rows)]
    for i in range(0, images, some_images):
        for j in range(0, heads, some_heads):
            yield slice(i, i + some_images), slice(j, j + some_heads), tiles


def _heads(x: torch.Tensor) -> torch.Tensor:
    """(b, H, W, t, n, d) to (t, b n, H, W, d)."""
    return x.permute(3, 0, 4, 1, 2, 5).flatten(1, 2).contiguous()


def _unheads(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(b n, H, W, d) to (b, H, W, n, d)."""
    return x.unflatten(0, (like.shape[0], like.shape[3])).permute(0, 2, 3, 1, 4)


def _positions(q: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions' part of the scores, of each query and row of keys, and of each query and column of keys."""
    return torch.einsum("...ywd,ykd->...ywk", q, table_h), torch.einsum("...ywd,wkd->...ywk", q, table_w)


def _scores(q: torch.Tensor, k: torch.Tensor, rel_h: torch.Tensor, rel_w: torch.Tensor) -> torch.Tensor:
    """Scores of some rows of queries (g, y, W, d) and all keys (g, H, W, d): (g, y W, H W), at least in float32."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = (rel_h.to(exact)[..., None] + rel_w[..., None, :]).flatten(3).flatten(1, 2)
    q, k = q.flatten(1, 2), k.flatten(1, 2).transpose(1, 2)
    if q.dtype == exact:
        return scores.baddbmm_(q, k, alpha=q.shape[-1] ** -0.5)
    return scores.add_(torch.bmm(q, k), alpha=q.shape[-1] ** -0.5)


def _tiled_empty(qkv: torch.Tensor, table_h: torch.Tensor, table_w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images, height, width, _, heads, dim = qkv.shape
    exact = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(images, height, width, heads, dim), qkv.new_empty(images, heads, height, width, dtype=exact)


# Registered as one operator, so that compilers, dispatch modes and selective checkpointing see one call and not its
# tiles.
_tiled = torch.library.custom_op("medsaga::tiled_attention", _tiled_forward, mutates_args=(), device_types="cpu")
_tiled.register_fake(_tiled_empty)
_tiled_grad = torch.library.custom_op(
    "medsaga::tiled_attention_backward", _tiled_backward, mutates_args=(), device_types="cpu"
)


@_tiled_grad.register_fake
def _(grad, qkv, table_h, table_w, out, log_sum):
    return (
        torch.empty_like(qkv, memory_format=torch.contiguous_format),
        torch.empty_like(table_h),
        torch.empty_like(table_w),
    )


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return _tiled_grad(grad, *ctx.saved_tensors)


_tiled.register_autograd(_backward, setup_context=_save)
