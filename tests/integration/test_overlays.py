"""Each overlay of bundles/methods trains, evaluates, segments and resumes like the bundle itself."""

import csv

import nibabel as nib
import pytest
import torch

from medsaga.networks import build_encoder

from .bundles import TWO_EPOCHS, fails, paths, run

# the number of LoRA's matrices, of adapters' down-projections, and the overlay that advice names, None for the bundle's
ADDED = {
    "full": (0, 0, None),
    "samed": (8, 0, "samed"),  # A and B of q and v in two blocks
    "samed_s": (36, 0, "samed_s"),  # and in the decoder's seven attentions
    "lite_lora": (24, 0, "lite_lora"),  # q, k, v, o and two layers of the MLP in two blocks
    "msa": (0, 7, "msa"),  # two a block, three in the decoder
    "msa_3d": (0, 9, "msa_3d"),  # three a block
}
OVERLAYS = {method: f"../../methods/{method}" for method in ADDED}  # as seen from a bundle's configs
SHORT = {
    **TWO_EPOCHS,
    "test_patients": 1,
    "val_patients": 1,
    "train_patients": 4,
    "num_slices": 8,
    "min_classes": 1,
}
STEPS = {"lr_scheduler#max_steps": 4}  # also of the run that ends after its first epoch
TRAINED = {"network_def#encoder": "vit_test", "image_size": 64}


@pytest.fixture(scope="module", params=OVERLAYS)
def trained(request, phantoms, tmp_path_factory):
    """A bundle trained with an overlay: the overlay, its overrides and the folder of what it wrote."""
    work = tmp_path_factory.mktemp(request.param)
    # the rate of lite_lora falls by the validation
    steps = {} if request.param == "lite_lora" else STEPS
    overrides = {**SHORT, **steps, **paths("hippocampus", phantoms, work)}
    run("training", "hippocampus", "train", OVERLAYS[request.param], **overrides)
    return request.param, overrides, work


def test_it_trains_what_it_should(trained):
    method, _, work = trained
    last = torch.load(work / "output" / "last.pt", weights_only=True)
    lora = {key for key in last["network"] if ".lora_" in key}
    adapters = {key for key in last["network"] if key.endswith(("_adapter.down", ".adapter.down"))}
    assert (len(lora), len(adapters)) == ADDED[method][:2]
    groups = last["optimizer"]["param_groups"]
    assert [group["name"] for group in groups] == ["encoder", "decoder"]
    of_encoder = {"full": len(list(build_encoder("vit_test", 64).parameters())), "msa": 2 * 2 * 4, "msa_3d": 2 * 13}
    lora_of_encoder = sum(key.startswith("image_encoder.") for key in lora)
    assert len(groups[0]["params"]) == of_encoder.get(method, lora_of_encoder)
    assert (groups[0]["lr"] == groups[1]["lr"]) == (method != "full")
    assert lora | adapters <= set(torch.load(work / "model.pt", weights_only=True))


def test_it_evaluates_and_segments(trained, phantoms):
    method, overrides, work = trained
    run("evaluating", "hippocampus", "train", "evaluate", OVERLAYS[method], **overrides)
    rows = list(csv.DictReader((work / "output" / "evaluation" / "metrics.csv").open()))
    assert {row["class"] for row in rows} == {"anterior", "posterior"}
    image = sorted((phantoms / "imagesTr").iterdir())[0]
    options = {"model_path": overrides["model_path"], "dataset_dir": str(image), "output_dir": str(work / "masks")}
    run("evaluating", "hippocampus", "inference", OVERLAYS[method], **TRAINED, **options)
    mask = next((work / "masks").glob("*_seg.nii.gz"))
    assert nib.load(mask).shape == nib.load(image).shape


def test_it_resumes(trained, tmp_path):
    method, overrides, work = trained
    stopped = {**overrides, "output_dir": str(tmp_path / "output"), "model_path": str(tmp_path / "model.pt")}
    run("training", "hippocampus", "train", OVERLAYS[method], **{**stopped, "train#trainer#max_epochs": 1})
    run("training", "hippocampus", "train", OVERLAYS[method], **stopped, resume=True)
    resumed, whole = (torch.load(f / "output" / "last.pt", weights_only=True) for f in (tmp_path, work))
    assert resumed["progress"] == whole["progress"] == {"epoch": 2, "iteration": 4}
    assert all(torch.equal(value, resumed["network"][key]) for key, value in whole["network"].items())


def test_a_model_of_another_method_is_refused(trained, phantoms, tmp_path):
    """The advice names the overlay to add or to leave out."""
    method, overrides, _ = trained
    advised = ADDED[method][2]
    names = ("train", "evaluate") if advised else ("train", "evaluate", OVERLAYS["samed"])
    message = fails("evaluating", "hippocampus", *names, **{**overrides, "output_dir": str(tmp_path)})
    assert overrides["model_path"] in message
    assert f"bundles/methods/{advised or 'samed'}.json" in message
