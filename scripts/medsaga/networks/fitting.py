"""Weights made to fit a network of another image size or number of classes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .encoders import VIT_GEOMETRY

__all__ = ["FINE_FEATURES", "encoder_of", "fit_classes", "fit_positions", "start_fresh"]

FINE_FEATURES = "fine_features."
# parameters that SAM does not have: LoRA's, the adapters', those of the channels and of the finer features
_ADDED = re.compile(r"\.lora_|_adapter\.|^channel_projection\.|^fine_features\.")


def encoder_of(state: dict[str, torch.Tensor]) -> str | None:
    """Name the encoder a state dict seems to be of, by the shape of its patch embedding and its depth."""
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is not None:
        depth = len({m[1] for key in state if (m := re.match(r"image_encoder\.blocks\.(\d+)\.", key))})
        for name, geometry in VIT_GEOMETRY.items():
            if (geometry["embed_dim"], geometry["depth"]) == (patches.shape[0], depth):
                return name
    patches = state.get("image_encoder.patch_embed.0.conv.weight")
    # MobileSAM's TinyViT has the same names, but patches of 3x3 pixels.
    return "vit_t" if patches is not None and patches.shape == (32, 3, 1, 1) else None


def fit_classes(
    state: dict[str, torch.Tensor], network: nn.Module, own: bool, new_head: bool, source: str | Path
) -> None:
    """If the classes differ, replace SAM's four mask tokens, and the layers that belong to them, by the fresh ones.

    Args:
        state: changed in place.
        network: a :class:`~medsaga.networks.SamSegmenter`.
        own: whether the state is of such a network, not of SAM's format.
        new_head: replace them even if the number is the same.
        source: of the state, for the error.

    Raises:
        ValueError: the state is of another number of classes.
    """
    tokens = state.get("mask_decoder.mask_tokens.weight")
    wanted = network.num_classes
    if tokens is None or (len(tokens) == wanted and (own or not new_head)):
        return
    if own or len(tokens) != 4:
        raise ValueError(
            f"{source} has {len(tokens)} classes, the network has {wanted}: set num_classes={len(tokens)}, "
            "or start from published weights"
        )
    head = tuple(
        f"mask_decoder.{part}." for part in ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
    )
    for key in [key for key in state if key.startswith(head)]:
        del state[key]
    state.update({key: fresh for key, fresh in network.state_dict().items() if key.startswith(head)})


def fit_positions(state: dict[str, torch.Tensor], network: nn.Module) -> None:
    """Interpolate tables of positions to the network's image size (SAMed, arXiv 2304.13785, section 4.1), in place."""
    if network.encoder == "vit_t":
        return  # its positions are relative, within windows of fixed size
    key = "image_encoder.pos_embed"
    new = network.image_encoder.pos_embed  # (1, e, e, C)
    if key in state and state[key].shape != new.shape:
        table = state[key].permute(0, 3, 1, 2)
        table = F.interpolate(table, size=new.shape[1:3], mode="bicubic", align_corners=False)
        state[key] = table.permute(0, 2, 3, 1)
    for i, block in enumerate(network.image_encoder.blocks):
        if block.window_size > 0:
            continue
        for axis in ("rel_pos_h", "rel_pos_w"):
            key = f"image_encoder.blocks.{i}.attn.{axis}"
            length = len(getattr(block.attn, axis))  # 2e - 1
            if key in state and len(state[key]) != length:
                table = F.interpolate(state[key].T[None], size=length, mode="linear", align_corners=False)
                state[key] = table[0].T


def start_fresh(state: dict[str, torch.Tensor], network: nn.Module, own: bool) -> None:
    """Take from the network what the state cannot have: all that SAM lacks, or the finer features of a later version.

    Args:
        state: changed in place.
        network: a :class:`~medsaga.networks.SamSegmenter`.
        own: whether the state is of such a network, not of SAM's format.
    """
    fresh = network.state_dict()
    if not own:
        state.update({key: value for key, value in fresh.items() if _ADDED.search(key)})
    elif not any(key.startswith(FINE_FEATURES) for key in state):
        state.update({key: value for key, value in fresh.items() if key.startswith(FINE_FEATURES)})
