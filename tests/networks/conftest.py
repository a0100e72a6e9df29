"""A small Segment Anything model by segment_anything's own classes, as the reference for SamSegmenter("vit_test")."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn


def build_small_sam(image_size: int) -> Sam:
    grid = image_size // 16
    torch.manual_seed(0)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=64,
            img_size=image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=4,
            out_chans=256,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    for name, parameter in sam.named_parameters():
        if "pos" in name:  # SAM starts its position tables from zero, which would hide any mistake with them
            nn.init.normal_(parameter, std=0.2)
    return sam.eval()


@pytest.fixture(scope="session")
def sam() -> Sam:
    """Segment Anything of the geometry of vit_test at 96 px, with random weights."""
    return build_small_sam(96)


@pytest.fixture(scope="session")
def sam_file(sam, tmp_path_factory):
    """Its checkpoint, in SAM's format."""
    path = tmp_path_factory.mktemp("sam") / "small_sam.pth"
    torch.save(sam.state_dict(), path)
    return path
