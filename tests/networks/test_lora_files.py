import pytest
import torch
from torch import nn

from medsaga.networks import PUBLISHED, SamSegmenter, load_weights
from medsaga.networks.merge import merge_file

from .test_weights import base  # noqa: F401  a fixture

CLASSES, DIM, RANK = 3, 64, 4  # channels of vit_test


def random(*shape: int) -> nn.Parameter:
    """SAMed saves parameters, not tensors."""
    return nn.Parameter(torch.randn(*shape) / 8)


def pairs(name: str, count: int, outputs: int, inputs: int) -> dict[str, nn.Parameter]:
    """Pairs A and B, numbered as SAMed does: of the queries and of the values of each layer in turn."""
    return {
        f"{name}_{ab}_{i:03d}": random(*((RANK, inputs) if ab == "a" else (outputs, RANK)))
        for i in range(count)
        for ab in "ab"
    }


@pytest.fixture(params=["samed", "samed_s"])
def samed(request, base, monkeypatch, tmp_path):  # noqa: F811
    """A file as SAMed's or SAMed_s's code saves it, and the dense network it means, without LoRA."""
    monkeypatch.setitem(PUBLISHED, "sam_vit_test", PUBLISHED["sam_vit_b"])

    def saved(name: str) -> bool:
        if request.param == "samed_s" and name.startswith("mask_decoder.transformer."):
            return False
        return name.startswith(("prompt_encoder.", "mask_decoder."))

    torch.manual_seed(3)
    dense = SamSegmenter("vit_test", 64, CLASSES, weights="sam_vit_test").eval()
    dense.pixel_mean.fill_(0)
    dense.pixel_std.fill_(1)
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if saved(name):
                parameter.add_(torch.randn_like(parameter) / 50)

    file = pairs("w", 4, DIM, DIM)
    attentions = []
    transformer = dense.mask_decoder.transformer
    if request.param == "samed_s":
        kinds = {"sa": ("self_attn", 256), "cti": ("cross_attn_token_to_image", 128)}
        kinds["cit"] = ("cross_attn_image_to_token", 128)
        for short, (name, outputs) in kinds.items():
            file |= pairs(short, 4, outputs, 256)
            for i, layer in enumerate(transformer.layers):
                numbers = (f"{2 * i:03d}", f"{2 * i + 1:03d}")
                attentions.append((getattr(layer, name), [(f"{short}_a_{n}", f"{short}_b_{n}") for n in numbers]))
        for part in "qv":
            file |= {f"fati_{part}a": random(RANK, 256), f"fati_{part}b": random(128, RANK)}
        attentions.append((transformer.final_attn_token_to_image, [("fati_qa", "fati_qb"), ("fati_va", "fati_vb")]))
    file |= {name: value.clone() for name, value in dense.state_dict().items() if saved(name)}
    torch.save(file, tmp_path / "epoch_159.pth")

    with torch.no_grad():
        for i, block in enumerate(dense.image_encoder.blocks):
            block.attn.qkv.weight[:DIM] += file[f"w_b_{2 * i:03d}"] @ file[f"w_a_{2 * i:03d}"]
            block.attn.qkv.weight[-DIM:] += file[f"w_b_{2 * i + 1:03d}"] @ file[f"w_a_{2 * i + 1:03d}"]
        for attention, ((a_q, b_q), (a_v, b_v)) in attentions:
            attention.q_proj.weight += file[b_q] @ file[a_q]
            attention.v_proj.weight += file[b_v] @ file[a_v]
    return tmp_path / "epoch_159.pth", dense, {"rank": RANK, "decoder": request.param == "samed_s"}


@torch.no_grad()
def test_a_checkpoint_of_samed_gives_its_logits(samed):
    path, dense, options = samed
    images = torch.rand(2, 1, 64, 64)
    expected = dense(images)
    network = SamSegmenter("vit_test", 64, CLASSES, weights=path, new_head=True, lora=options).eval()
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert network.base == "sam_vit_test"
    served = SamSegmenter("vit_test", 64, CLASSES, lora=options).eval()
    load_weights(served, path, trained=True)
    assert torch.equal(served(images), network(images))


@torch.no_grad()
def test_merged_it_needs_no_lora(samed, tmp_path):
    path, dense, _ = samed
    merge_file(path, tmp_path / "model.pt")
    network = SamSegmenter("vit_test", 64, CLASSES).eval()
    load_weights(network, tmp_path / "model.pt", trained=True)
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(network(images), dense(images), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_said(samed):
    path, _, options = samed
    with pytest.raises(ValueError, match=r"epoch_159\.pth does not fit.*set network_def#lora#rank=4"):
        SamSegmenter("vit_test", 64, CLASSES, weights=path, lora={**options, "rank": 2})
    with pytest.raises(ValueError, match=r"set network_def#lora#decoder="):
        SamSegmenter("vit_test", 64, CLASSES, weights=path, lora={**options, "decoder": not options["decoder"]})
    with pytest.raises(ValueError, match="has 3 classes, the network has 5: set num_classes=3"):
        SamSegmenter("vit_test", 64, 5, weights=path, lora=options)
    with pytest.raises(ValueError, match="'sam_vit_test' are of encoder vit_test, but the network has vit_t"):
        SamSegmenter("vit_t", 64, CLASSES, weights=path, lora=options)
