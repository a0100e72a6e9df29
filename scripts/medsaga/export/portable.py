"""A network of operators that other runtimes support, on any device, without this package."""

from __future__ import annotations

import copy

import torch
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medsaga.networks import SamSegmenter
from medsaga.networks.attention import RelPosAttention, folded_attention, unit_vectors
from medsaga.networks.tiny_vit import FoldedConvNorm

__all__ = ["AutomaticSegmenter", "portable"]


class _PortableAttention(nn.Module):
    """The form for GPUs, on any device; tensors that depend on size alone are stored, so no device is in a trace."""

    def __init__(self, attention: RelPosAttention) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj
        # tables have 2 H - 1 and 2 W - 1 rows
        height, width = ((len(table) + 1) // 2 for table in (attention.rel_pos_h, attention.rel_pos_w))
        self.register_buffer("table_h", get_rel_pos(height, height, attention.rel_pos_h.detach()))
        self.register_buffer("table_w", get_rel_pos(width, width, attention.rel_pos_w.detach()))
        self.register_buffer("units", unit_vectors(height, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        return self.proj(folded_attention(qkv, self.table_h, self.table_w, self.units).flatten(-2))


def portable(network: SamSegmenter) -> SamSegmenter:
    """A copy for export: PyTorch's own operators only, norms folded into convolutions.

    Args:
        network: in ``precision="fp32"``; it is not changed.

    Returns:
        the same function, on the CPU, in ``eval()``.

    Raises:
        ValueError: the network is of another precision.
    """
    if network.precision != "fp32":
        raise ValueError(f"a network of precision {network.precision!r} cannot be exported: build it with 'fp32'.")
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    _replace(network)
    return network


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, RelPosAttention):
            setattr(module, name, _PortableAttention(child))
        elif isinstance(child, FoldedConvNorm):
            setattr(module, name, fuse_conv_bn_eval(child.conv, child.bn))
        else:
            _replace(child)


class AutomaticSegmenter(nn.Module):
    """A network without prompts, whose embeddings of "no prompt" are constants.

    Args:
        network: of :func:`portable`.

    Shape:
        - input: (B, C, S, S), intensities in [0, 1]
        - output: (B, k, m, m) logits
    """

    def __init__(self, network: SamSegmenter) -> None:
        super().__init__()
        self.network = network
        sparse, dense = network.prompt_encoder(points=None, boxes=None, masks=None)
        constants = {"image_pe": network.prompt_encoder.get_dense_pe(), "sparse": sparse, "dense": dense}
        for name, constant in constants.items():
            self.register_buffer(name, constant.detach().clone())
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.predict(self.network.embed(image), self.image_pe, self.sparse, self.dense)
