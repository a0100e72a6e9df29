"""The image encoders by name: Segment Anything's ViT-B, -L and -H, LiteMedSAM's TinyViT and a tiny ViT for tests."""

from __future__ import annotations

from torch import nn

from .tiny_vit import TinyViTEncoder
from .vit import ViTEncoder

__all__ = ["ENCODERS", "VIT_GEOMETRY", "build_encoder", "embedding_size"]

# What tells one ViT from another; the rest is common to all.
VIT_GEOMETRY = {
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12, "window_size": 14, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "window_size": 14, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "window_size": 14, "global_blocks": (7, 15, 23, 31)},
    # No published weights: the same classes, small enough for tests and smoke runs.
    "vit_test": {"embed_dim": 64, "depth": 2, "num_heads": 2, "window_size": 4, "global_blocks": (1,)},
}
ENCODERS = (*VIT_GEOMETRY, "vit_t")


def build_encoder(name: str, image_size: int, checkpointing: str = "off", offload: bool = False) -> nn.Module:
    """Build an image encoder with fresh weights.

    Args:
        name: ``vit_b``, ``vit_l``, ``vit_h`` (Segment Anything), ``vit_t`` (LiteMedSAM) or ``vit_test`` (tiny, for
            tests).
        image_size: side of the square input in pixels; a multiple of 16, for ``vit_t`` of 8.
        checkpointing: as in :class:`~medsaga.networks.SamSegmenter`.
        offload: as in :class:`~medsaga.networks.SamSegmenter`.

    Returns:
        A module from (B, 3, S, S) to (B, 256, e, e), where ``e = embedding_size(name, S)``.

    Raises:
        ValueError: when the name is unknown or the size does not fit.

    Source:
        Segment Anything (arXiv 2304.02643), appendix A, and its public ``build_sam.py``.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder={name!r} is unknown: choose one of {', '.join(ENCODERS)}")
    if name == "vit_t":
        return TinyViTEncoder(image_size, checkpointing, offload)
    if image_size < 16 or image_size % 16:
        raise ValueError(f"image_size={image_size}: {name} needs a multiple of its patch size 16, for example 512")
    return ViTEncoder(image_size, **VIT_GEOMETRY[name], checkpointing=checkpointing, offload=offload)


def embedding_size(name: str, image_size: int) -> int:
    """Side of the embedding grid: a quarter of the input for ``vit_t``, a sixteenth for the others."""
    return image_size // (4 if name == "vit_t" else 16)
