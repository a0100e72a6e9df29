"""Low-rank adaptation (LoRA) of attention and MLPs, as in SAMed and in LiteMedSAM with LoRA."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention as SamAttention
from segment_anything.modeling.transformer import Attention as DecoderAttention
from timm.models.tiny_vit import Attention as TinyViTAttention
from timm.models.tiny_vit import NormMlp
from torch import nn
from torch.nn import functional as F

__all__ = ["LoRALinear", "add_lora", "lora_options", "merge_lora"]

_MLP_LAYERS = {MLPBlock: ("lin1", "lin2"), NormMlp: ("fc1", "fc2")}


class LoRALinear(nn.Linear):
    r"""A frozen linear layer with a trained low-rank update of some parts of its output.

    .. math:: \hat W_p = W_p + B_p A_p \quad \text{for each adapted part } p

    ``weight`` and ``bias`` are those of the given layer and keep their names, so checkpoints made without LoRA load by
    name. A is initialised like the weight of an ``nn.Linear``, B with zeros: at first nothing changes. There is no
    factor on ``B A`` (LoRA's alpha equals its rank), as in SAMed.

    ``B A`` is never formed. If the layer runs in half precision (by autocast or by its own weights), A and B stay in
    float32, because rounding would lose their updates. They are rounded where they are used.

    Args:
        linear: the layer to adapt. Its parameters are taken over and frozen.
        rank: rank r of each update.
        parts: what the output consists of, a letter for each of P equal parts: ``qkv`` for queries, keys and values of
            one layer, one letter for a layer that has one result.
        adapted: the parts that are updated, letters of ``parts`` in its order.
        heads: how many times the parts alternate along the output. Segment Anything's ViT has all of q, then k, then
            v: 1. TinyViT has q, k, v head by head: its number of heads.

    Shape:
        - input: (..., C)
        - output: (..., P D)
        - lora_a_q, for part q: (r, C); lora_b_q: (D, r). Rows of B run head by head.

    Raises:
        ValueError: when the rank is not between 1 and ``min(C, D)``.

    Source:
        LoRA (arXiv 2106.09685), eq. 3; SAMed (arXiv 2304.13785), section 3.2.
    """

    def __init__(self, linear: nn.Linear, rank: int, parts: str, adapted: str, heads: int = 1) -> None:
        dim = linear.out_features // len(parts)
        if not 1 <= rank <= min(linear.in_features, dim):
            raise ValueError(
                f"lora: rank={rank}: a projection from {linear.in_features} to {dim} takes a rank from 1 to "
                f"{min(linear.in_features, dim)}"
            )
        # on no device: the parameters are replaced at once
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.requires_grad_(False)
        self.parts, self.adapted, self.heads = parts, adapted, heads
        device = self.weight.device
        for part in adapted:
            a, b = torch.empty(rank, linear.in_features, device=device), torch.zeros(dim, rank, device=device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            setattr(self, f"lora_a_{part}", nn.Parameter(a))
            setattr(self, f"lora_b_{part}", nn.Parameter(b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        by_head = out.unflatten(-1, (self.heads, len(self.parts), -1))  # (..., heads, P, D / heads), a view
        # all at once, so that autocast makes (and backward keeps) one rounded copy of x
        a = torch.cat([getattr(self, f"lora_a_{part}") for part in self.adapted])
        low_rank = F.linear(x, a.to(x.dtype)).chunk(len(self.adapted), dim=-1)
        for part, low in zip(self.adapted, low_rank):
            update = F.linear(low, getattr(self, f"lora_b_{part}").to(low.dtype))
            by_head[..., self.parts.index(part), :].add_(update.unflatten(-1, (self.heads, -1)))
        return out

    def extra_repr(self) -> str:
        rank = len(getattr(self, f"lora_a_{self.adapted[0]}"))
        return f"{super().extra_repr()}, rank={rank}, adapted={self.adapted} of {self.parts}, heads={self.heads}"


def add_lora(module: nn.Module, rank: int, projections: str = "qv", mlp: bool = False) -> None:
    """Freeze a transformer and add a trained low-rank update to every attention, and to every MLP if wanted.

    Args:
        module: Segment Anything's ViT, :class:`~medsaga.networks.TinyViTEncoder` or the mask decoder's two-way
            transformer; changed in place.
        rank: rank of each update.
        projections: which projections of an attention are updated, some of the letters ``qkvo``: to queries, keys and
            values, and the output projection.
        mlp: update both layers of each MLP too.

    Raises:
        ValueError: when the rank does not fit, a letter is unknown or repeated, or the module has no attention known
            here.

    Source:
        SAMed (arXiv 2304.13785), section 3.2 and its ablation of projections.
    """
    if not projections or set(projections) - set("qkvo") or len(set(projections)) < len(projections):
        raise ValueError(
            f"lora: projections={projections!r}: it must be one or more of the letters q, k, v (queries, keys, values) "
            "and o (the attention's output), each at most once, for example 'qv' as in SAMed"
        )
    module.requires_grad_(False)
    of_input = "".join(part for part in "qkv" if part in projections)
    found = False
    for block in list(module.modules()):
        if isinstance(block, (SamAttention, TinyViTAttention)):
            found = True
            if of_input:
                heads = block.num_heads if isinstance(block, TinyViTAttention) else 1
                block.qkv = LoRALinear(block.qkv, rank, "qkv", of_input, heads)
            if "o" in projections:
                block.proj = LoRALinear(block.proj, rank, "o", "o")
        elif isinstance(block, DecoderAttention):
            found = True
            for part, name in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}.items():
                if part in projections:
                    setattr(block, name, LoRALinear(getattr(block, name), rank, part, part))
        elif mlp and type(block) in _MLP_LAYERS:
            for name in _MLP_LAYERS[type(block)]:
                setattr(block, name, LoRALinear(getattr(block, name), rank, "m", "m"))
    if not found:
        raise ValueError(f"{type(module).__name__} has no attention block that LoRA can adapt")


def lora_options(state: dict[str, torch.Tensor]) -> dict[str, int | str | bool]:
    """Read from a state dict with which LoRA options its network was built.

    Args:
        state: state dict of a ``SamSegmenter``.

    Returns:
        ``rank``, ``projections``, ``mlp`` and ``decoder``, as the argument ``lora`` of
        :class:`~medsaga.networks.SamSegmenter` takes them; empty for a network without LoRA.
    """
    ranks = {key: len(value) for key, value in state.items() if ".lora_a_" in key}
    if not ranks:
        return {}
    letters = {key[-1] for key in ranks}
    return {
        "rank": next(iter(ranks.values())),
        "projections": "".join(part for part in "qkvo" if part in letters),
        "mlp": "m" in letters,
        "decoder": any(key.startswith("mask_decoder.") for key in ranks),
    }


def merge_lora(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the low-rank updates to the weights they update, for serving without LoRA.

    Args:
        state: state dict of a ``SamSegmenter`` with LoRA; stays as it is.

    Returns:
        State dict of the same network without LoRA, whose logits are the same but for rounding.

    Source:
        LoRA (arXiv 2106.09685), section 4.1, "no additional inference latency".
    """
    merged = {key: value for key, value in state.items() if ".lora_" not in key}
    for key, a in state.items():
        layer, found, part = key.rpartition(".lora_a_")
        if not found:
            continue
        parts = "qkv" if layer.endswith("qkv") else part
        # only TinyViT has q, k, v head by head, and only it has these biases, one row per head
        biases = state.get(layer.removesuffix("qkv") + "attention_biases")
        heads = 1 if biases is None else len(biases)
        update = state[f"{layer}.lora_b_{part}"] @ a
        frozen = merged[f"{layer}.weight"]
        weight = frozen.to(torch.promote_types(frozen.dtype, update.dtype), copy=True)
        weight.unflatten(0, (heads, len(parts), -1))[:, parts.index(part)] += update.unflatten(0, (heads, -1))
        merged[f"{layer}.weight"] = weight
    return merged
