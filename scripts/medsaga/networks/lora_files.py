"""LoRA checkpoints as SAMed publishes them."""

from __future__ import annotations

import re

import torch

from .encoders import VIT_GEOMETRY

__all__ = ["from_samed", "samed_encoder"]

# SAMed_s numbers the pairs of the mask decoder's attentions by kind.
_DECODER_ATTENTIONS = {
    "sa": "self_attn",
    "cti": "cross_attn_token_to_image",
    "cit": "cross_attn_image_to_token",
}


def samed_encoder(state: dict[str, torch.Tensor]) -> str | None:
    """Name the encoder that a checkpoint of SAMed adapts.

    Args:
        state: content of any file of tensors.

    Returns:
        Key of ``ENCODERS``; None when the content is not SAMed's.
    """
    blocks = sum(bool(re.fullmatch(r"w_a_\d+", key)) for key in state) // 2
    for name, geometry in VIT_GEOMETRY.items():
        if blocks == geometry["depth"] and state["w_a_000"].shape[1] == geometry["embed_dim"]:
            return name
    return None


def from_samed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the parameters of a SAMed or SAMed_s checkpoint to this project's.

    SAMed's file has ``w_a_000`` (r, C) and ``w_b_000`` (C, r) for the queries of the first block, ``w_a_001`` and
    ``w_b_001`` for its values, and so on; SAMed_s also ``sa_a_000`` (self-attention), ``cti_a_000`` (tokens to image)
    and ``cit_a_000`` (image to tokens) in the same way for the layers of the mask decoder, and ``fati_qa`` to
    ``fati_vb`` for its last attention. Prompt encoder and mask decoder have SAM's names.

    Args:
        state: content of such a file.

    Returns:
        The same tensors under the names of a ``SamSegmenter`` with LoRA.

    Source:
        SAMed (arXiv 2304.13785) and ``save_lora_parameters`` of its public code.
    """
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    transformer = "mask_decoder.transformer."
    if m := re.fullmatch(r"fati_([qv])([ab])", key):
        return f"{transformer}final_attn_token_to_image.{m[1]}_proj.lora_{m[2]}_{m[1]}"
    if m := re.fullmatch(r"(w|sa|cti|cit)_([ab])_(\d+)", key):
        index, of_values = divmod(int(m[3]), 2)
        part = "v" if of_values else "q"
        if m[1] == "w":
            return f"image_encoder.blocks.{index}.attn.qkv.lora_{m[2]}_{part}"
        return f"{transformer}layers.{index}.{_DECODER_ATTENTIONS[m[1]]}.{part}_proj.lora_{m[2]}_{part}"
    return key
