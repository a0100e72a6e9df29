"""Segment Anything networks for medical images: build one by ``SamSegmenter``, name it in a config's ``_target_``."""

from .encoders import ENCODERS, build_encoder
from .lora import merge_lora
from .mask_decoder import ClassMaskDecoder
from .published import PUBLISHED, weights_path
from .sam_segmenter import SamSegmenter, mask_prompt
from .tiny_vit import TinyViTEncoder
from .weights import load_weights, trained_state

__all__ = [
    "ENCODERS",
    "PUBLISHED",
    "ClassMaskDecoder",
    "SamSegmenter",
    "TinyViTEncoder",
    "build_encoder",
    "load_weights",
    "mask_prompt",
    "merge_lora",
    "trained_state",
    "weights_path",
]
