"""Low-rank adaptation (LoRA) of an image encoder's attention, as in SAMed."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.image_encoder import Attention as SamAttention
from timm.models.tiny_vit import Attention as TinyViTAttention
from torch import nn
from torch.nn import functional as F

__all__ = ["LoRAQueryValue", "add_lora"]


class LoRAQueryValue(nn.Linear):
    r"""A frozen projection to queries, keys and values, with a trained low-rank update of queries and values.

    .. math:: \hat W_q = W_q + B_q A_q, \quad \hat W_k = W_k, \quad \hat W_v = W_v + B_v A_v

    ``weight`` and ``bias`` are the given layer's own, under its names, so checkpoints made without LoRA fit by name.
    A starts as the weight of an ``nn.Linear`` does, B as zero: at first nothing changes. There is no factor on ``B A``
    (LoRA's alpha equals its rank), as in SAMed.

    ``B A`` is never formed. Where the layer runs in half precision, by autocast or by its own weights, A and B stay in
    float32, as their updates would be lost in rounding, and are rounded where they are used.

    Args:
        qkv: the layer to adapt. Its parameters are taken over and frozen.
        rank: rank r of the update.
        heads: how many times q, k and v alternate along the output. Segment Anything's ViT has all of q, then k, then
            v: 1. TinyViT has q, k, v head by head: its number of heads.

    Shape:
        - input: (..., C)
        - output: (..., 3 D)
        - lora_a_q, lora_a_v: (r, C); lora_b_q, lora_b_v: (D, r). Rows of B run head by head.

    Raises:
        ValueError: when the rank is not between 1 and ``min(C, D)``.

    Source:
        LoRA (arXiv 2106.09685), eq. 3; SAMed (arXiv 2304.13785), section 3.2.
    """

    def __init__(self, qkv: nn.Linear, rank: int, heads: int) -> None:
        dim = qkv.out_features // 3
        if not 1 <= rank <= min(qkv.in_features, dim):
            raise ValueError(
                f"lora_rank={rank}: a projection from {qkv.in_features} to {dim} takes a rank from 1 to "
                f"{min(qkv.in_features, dim)}"
            )
        # on no device: the parameters are replaced at once
        super().__init__(qkv.in_features, qkv.out_features, bias=qkv.bias is not None, device="meta")
        self.weight, self.bias = qkv.weight, qkv.bias
        self.requires_grad_(False)
        self.heads = heads
        device = self.weight.device
        for name in ("q", "v"):
            a, b = torch.empty(rank, qkv.in_features, device=device), torch.zeros(dim, rank, device=device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            setattr(self, f"lora_a_{name}", nn.Parameter(a))
            setattr(self, f"lora_b_{name}", nn.Parameter(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = super().forward(x)
        by_head = qkv.unflatten(-1, (self.heads, 3, -1))  # (..., heads, 3, D / heads), a view
        # both at once, so that autocast makes (and backward keeps) one rounded copy of x
        low_rank = F.linear(x, torch.cat([self.lora_a_q, self.lora_a_v]).to(x.dtype)).chunk(2, dim=-1)
        for part, low, b in zip((0, 2), low_rank, (self.lora_b_q, self.lora_b_v)):
            update = F.linear(low, b.to(low.dtype))
            by_head[..., part, :].add_(update.unflatten(-1, (self.heads, -1)))
        return qkv

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_a_q)}, heads={self.heads}"


def add_lora(encoder: nn.Module, rank: int) -> None:
    """Freeze an image encoder and add a trained low-rank update to the queries and values of every attention block.

    Args:
        encoder: Segment Anything's ViT or :class:`~medsaga.networks.TinyViTEncoder`; changed in place.
        rank: rank of the update.

    Raises:
        ValueError: when the rank does not fit, or the encoder has no attention known here.

    Source:
        SAMed (arXiv 2304.13785), section 3.2.
    """
    encoder.requires_grad_(False)
    attentions = [module for module in encoder.modules() if isinstance(module, (SamAttention, TinyViTAttention))]
    if not attentions:
        raise ValueError(f"LoRA has no attention block to adapt in {type(encoder).__name__}")
    for attention in attentions:
        heads = attention.num_heads if isinstance(attention, TinyViTAttention) else 1
        attention.qkv = LoRAQueryValue(attention.qkv, rank, heads)
