"""Checkpoints of other programs: wrappers, prefixes, and files that hold no weights."""

from __future__ import annotations

import argparse
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medsaga.checkpoints import read_checkpoint
from medsaga.networks import SamSegmenter, load_weights, weights_path
from medsaga.networks.checkpoint_files import find_state


def small(**options):
    return SamSegmenter("vit_test", image_size=64, **{"num_classes": 3, **options})


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return small().state_dict()


def saved(path, content):
    torch.save(content, path)
    return path


def loads(path, state, **options):
    network = small(**options)
    load_weights(network, path, trained=True)
    return all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


# --- wrappers and prefixes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["module.", "sam.", "model.", "network.", "_orig_mod.", "module._orig_mod.", "net.sam.", "anything."]
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "network", "ema"])
def test_prefixes_and_wrappers_are_opened(state, tmp_path, prefix, wrapper):
    content = prefixed(state, prefix)
    if wrapper:
        content = {wrapper: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    assert loads(saved(tmp_path / "own.pt", content), state)


def test_a_real_lightning_layout_is_read(state, tmp_path):
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(state, "model."), "loss.weight": torch.ones(3), "model_ema.n": torch.zeros(())},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 1e-3, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1, list=[1])},
    }
    assert loads(saved(tmp_path / "last.ckpt", content), state)


def test_wrapped_modules_lose_what_wraps_them(state, tmp_path):
    network = small()
    network.load_state_dict(state)
    network.image_encoder = nn.DataParallel(network.image_encoder)
    network.mask_decoder = torch.compile(network.mask_decoder)
    content = nn.DataParallel(network).state_dict()
    assert {"module.image_encoder.module.pos_embed", "module.mask_decoder._orig_mod.mask_tokens.weight"} < set(content)
    assert loads(saved(tmp_path / "own.pt", content), state)


def test_the_trained_network_goes_before_its_average_and_equals_are_refused(state, tmp_path):
    other = {key: value + 1 for key, value in state.items()}
    assert loads(saved(tmp_path / "a.pt", {"ema": other, "model": state}), state)
    assert loads(saved(tmp_path / "b.pt", {**prefixed(other, "teacher."), **prefixed(state, "student.")}), state)
    with pytest.raises(ValueError, match=r"c\.pt holds several networks .* 'first' and 'second': save only the one"):
        loads(saved(tmp_path / "c.pt", {"first": other, "second": state}), state)
    assert loads(saved(tmp_path / "d.pt", {"first": state, "second": dict(state)}), state)


def test_weights_of_sam_and_lite_medsam_are_found_in_wrappers_too(state, tmp_path):
    sam = {key: value for key, value in state.items() if not key.startswith("pixel_")}
    path = saved(tmp_path / "sam.pt", {"state_dict": prefixed(sam, "sam.")})
    assert torch.equal(small(weights=path).state_dict()["image_encoder.pos_embed"], sam["image_encoder.pos_embed"])
    lite = torch.load(weights_path("lite_medsam"), weights_only=True)
    path = saved(tmp_path / "lite.pt", {"model": prefixed(lite, "module.")})
    found, direct = (SamSegmenter("vit_t", 64, 4, weights=w).state_dict() for w in (path, "lite_medsam"))
    assert all(torch.equal(value, direct[key]) for key, value in found.items())


def test_a_networks_own_names_are_never_taken_for_a_prefix(tmp_path):
    names = ["model.model.weight", "model.weight", "module.bias", "sam.0.weight"]
    content = {name: torch.full((1,), float(i)) for i, name in enumerate(names)}
    assert find_state(content, names, Path("x")) == content
    assert find_state({"state_dict": content}, names, Path("x")) == content
    assert find_state(prefixed(content, "model."), names, Path("x")) == content


def test_a_prefix_hides_no_error(state, tmp_path):
    content = prefixed(state, "model.")
    del content["model.image_encoder.pos_embed"]
    with pytest.raises(ValueError, match=r"does not fit.*missing: image_encoder\.pos_embed"):
        loads(saved(tmp_path / "part.pt", content), state)
    with pytest.raises(ValueError, match=r"foreign\.pt does not fit.*unexpected: model\.conv\.weight"):
        small(weights=saved(tmp_path / "foreign.pt", {"state_dict": {"model.conv.weight": torch.zeros(3)}}))


def test_safetensors_are_read(state, tmp_path):
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "own.safetensors")
    assert loads(tmp_path / "own.safetensors", state)
    content = (tmp_path / "own.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read: it is damaged"):
        loads(tmp_path / "cut.safetensors", state)


# --- files without weights ------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 375042383\n"


class Own:
    """A class of the program that saved the file."""


def torchscript(path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("spleen/configs/metadata.json", "{}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(POINTER), r"is a git-lfs pointer, not the weights \(375 MB\).*git lfs pull"),
        (lambda path: path.write_bytes(b""), "it has 0 bytes"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>Log in"), "a web page was saved in its place"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(600)), "is an archive. Unpack it"),
        (archive, "is a zip archive, but not a PyTorch weights file"),
        (torchscript, r"is a TorchScript program.*model\.pt"),
        (lambda path: path.write_bytes(b"no weights"), "it is damaged, or it is not a checkpoint"),
        (
            lambda path: torch.save({"model": Own()}, path),
            r"Python objects besides tensors \(.*Own\).*state_dict\(\)",
        ),
        (lambda path: torch.save({"f": threading.Thread}, path), r"besides tensors \(threading\.Thread\)"),
        (
            lambda path: torch.save({"f": threading.Thread}, path, _use_new_zipfile_serialization=False),
            r"besides tensors \(threading\.Thread\)",
        ),
    ],
)
def test_what_a_file_is_and_what_to_do_is_said_without_unsafe_advice(tmp_path, make, said):
    path = tmp_path / "own.pt"
    make(path)
    with pytest.raises(ValueError, match=rf"own\.pt .*{said}") as caught:
        small(weights=path)
    assert "weights_only" not in str(caught.value) and "safe_globals" not in str(caught.value)
    # nor in a traceback
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)


def test_a_file_that_is_cut_off_says_so(state, tmp_path):
    content = saved(tmp_path / "own.pt", state).read_bytes()
    for part in (0.3, 0.7, 0.99):
        (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ValueError, match=r"cut\.pt cannot be read: it is damaged, its end is missing"):
            small(weights=tmp_path / "cut.pt")


def test_values_and_arrays_of_numpy_are_read(tmp_path):
    content = {"score": np.float64(0.5), "epoch": np.int64(3), "curve": np.arange(3.0), "args": argparse.Namespace(a=1)}
    found = read_checkpoint(saved(tmp_path / "x.pt", content))
    assert found["score"] == 0.5 and found["epoch"] == 3 and found["args"].a == 1
    assert (found["curve"] == content["curve"]).all()
