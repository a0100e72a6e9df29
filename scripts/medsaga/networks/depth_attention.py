"""Attention along the third axis of a volume, with the weights of a slice encoder's own attention."""

from __future__ import annotations

import torch
from timm.models.tiny_vit import Attention as TinyViTAttention
from torch import nn
from torch.nn import functional as F

__all__ = ["DepthAttention"]


class DepthAttention(nn.Module):
    """The depth branch of an encoder block: each position of D neighbouring slices attends along the slices.

    The projections to queries, keys, values and output are those of the block's attention, whichever of them are
    trained. The block's position encoding describes places within a slice, not distances between slices. In its place,
    each head has a bias for each distance between slices, which starts from zero.

    The branch ends in an adapter, which starts from zero, so at first each slice is processed as if it were alone.
    Without it, attention along slices would be as strong as attention within them and would distort SAM's features. A
    single slice has no depth branch: its result is that of the 2-D form.

    Args:
        attention: the block's attention, only for its number of heads.
        adapter: what the branch's result passes through.
        depth: number D of slices that attend to each other.

    Shape:
        - x, output: (B, H, W, C), B slices in groups of D neighbours from the first on; the last group may be smaller

    Source:
        Medical SAM Adapter (arXiv 2304.12620), section on 3-D images (space-depth transpose).
    """

    def __init__(self, attention: nn.Module, adapter: nn.Module, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.distance_bias = nn.Parameter(torch.zeros(attention.num_heads, 2 * depth - 1))
        self.adapter = adapter

    def forward(self, x: torch.Tensor, attention: nn.Module) -> torch.Tensor:
        """
        Args:
            x: the normed input of the block's attention.
            attention: the block's attention.
        """
        return torch.cat([self._of_neighbours(chunk, attention) for chunk in x.split(self.depth)])

    def _of_neighbours(self, x: torch.Tensor, attention: nn.Module) -> torch.Tensor:
        slices = len(x)
        if slices == 1:
            return torch.zeros_like(x)
        qkv = attention.qkv(x).flatten(1, 2)  # (d, N, 3 C)
        if isinstance(attention, TinyViTAttention):  # q, k, v head by head
            q, k, v = qkv.unflatten(-1, (attention.num_heads, 3, -1)).unbind(-2)
        else:
            q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
        q, k, v = (y.permute(1, 2, 0, 3) for y in (q, k, v))  # (N, heads, d, C / heads): N positions, each d slices
        place = torch.arange(slices, device=x.device)
        bias = self.distance_bias[:, place[:, None] - place + self.depth - 1].to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.adapter(attention.proj(out.permute(2, 0, 1, 3).flatten(2)).view_as(x))
