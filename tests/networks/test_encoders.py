from functools import partial

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from medsaga.networks import ENCODERS, SamSegmenter, build_encoder
from medsaga.networks.encoders import embedding_size


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_layout_is_build_sams(name):
    with torch.device("meta"):
        ours = SamSegmenter(name, image_size=1024, num_classes=4)
        theirs = sam_model_registry[name]()
    shapes = {key: value.shape for key, value in ours.state_dict().items() if key not in ("pixel_mean", "pixel_std")}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    for our, their in zip(ours.image_encoder.blocks, theirs.image_encoder.blocks, strict=True):
        assert our.window_size == their.window_size
        assert our.attn.num_heads == their.attn.num_heads
        assert our.norm1.eps == their.norm1.eps
    transformer = repr(ours.mask_decoder.transformer).replace("TwoWayAttention(", "Attention(")
    assert transformer == repr(theirs.mask_decoder.transformer)
    assert repr(ours.prompt_encoder) == repr(theirs.prompt_encoder)


def test_vit_b_computes_what_build_sams_encoder_does():
    torch.manual_seed(0)
    theirs = ImageEncoderViT(
        depth=12,
        embed_dim=768,
        img_size=64,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=12,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=[2, 5, 8, 11],
        window_size=14,
        out_chans=256,
    )
    with torch.device("meta"):  # no second initialisation of 86 million weights
        ours = build_encoder("vit_b", 64)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, size", [("vit_test", 64), ("vit_test", 80), ("vit_t", 32), ("vit_t", 56)])
def test_embedding_has_the_announced_size(name, size):
    with torch.no_grad():
        embedding = build_encoder(name, size).eval()(torch.rand(1, 3, size, size))
    side = embedding_size(name, size)
    assert embedding.shape == (1, 256, side, side)


def test_unknown_encoder_lists_the_known():
    with pytest.raises(ValueError, match="vit_x.*" + ", ".join(ENCODERS)):
        build_encoder("vit_x", 256)


@pytest.mark.parametrize(
    "name, size, step", [("vit_b", 250, 16), ("vit_test", 0, 16), ("vit_t", 60, 8), ("vit_t", 0, 8)]
)
def test_sizes_that_do_not_fit_are_refused(name, size, step):
    with pytest.raises(ValueError, match=f"image_size={size}.* {step}"):
        build_encoder(name, size)
