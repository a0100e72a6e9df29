"""Bad files among good ones: in inference and evaluation each is listed and the others are done; none is trained on."""

import csv
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from medsaga.failures import CasesFailedError, root_cause

from .. import forks
from .bundles import ROOT, SMALL, command, config_files, paths, run

SHORT = {
    **SMALL,
    "train#trainer#max_epochs": 1,
    "val_interval": 1,
    "batch_size": 4,
    "test_patients": 4,
    "val_patients": 3,
    "train_patients": 3,
    "num_slices": 4,
    "warmup_steps": 1,
}
NETWORK = {"network_def#encoder": "vit_test", "image_size": 64}


def text(path):
    path.write_text("not an image")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def four_d(path):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, axis=-1), image.affine), path)


def constant(path):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.float32), image.affine), path)


def shifted(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 20
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def listed(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["cause"] and "\n" not in row["cause"] for row in rows)
    return [row["file"] for row in rows]


@pytest.fixture
def data(phantoms, tmp_path):
    """A copy of the phantoms that may be damaged."""
    return shutil.copytree(phantoms, tmp_path / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights of a network that nobody has trained."""
    config = monai.bundle.ConfigParser()
    config.read_config(config_files("hippocampus", "inference"))
    config.update({**NETWORK, "bundle_root": "."})
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.manual_seed(0)
    torch.save(config.get_parsed_content("network_def").state_dict(), path)
    return path


def segmenting(model, folder, output):
    return {**NETWORK, "model_path": str(model), "dataset_dir": str(folder), "output_dir": str(output)}


def masks(folder):
    return {path.name.removesuffix("_seg.nii.gz") for path in folder.glob("*_seg.nii.gz")}


def failing(run_id, *names, **overrides):
    with pytest.raises(Exception) as caught:
        run(run_id, "hippocampus", *names, **overrides)
    error = root_cause(caught.value)
    assert isinstance(error, CasesFailedError), error
    return str(error)


def test_inference_segments_every_good_file_and_lists_the_others(data, model, tmp_path):
    images = sorted((data / "imagesTr").iterdir())
    bad = [images[0], images[4], images[7], images[11]]  # the first and the last, too
    for path, breaks in zip(bad, (text, truncated, four_d, constant), strict=True):
        breaks(path)
    output = tmp_path / "masks"
    message = failing("evaluating", "inference", **segmenting(model, data / "imagesTr", output))
    assert listed(output / "errors.csv") == [str(path) for path in bad]
    assert masks(output) == {p.name.removesuffix(".nii.gz") for p in images if p not in bad}
    assert message.startswith("4 of 12 cases failed")
    assert all(str(path) in message for path in bad)
    # what was wrong is mended: nothing is left of the list
    for path in bad:
        path.unlink()
    run("evaluating", "hippocampus", "inference", **segmenting(model, data / "imagesTr", output))
    assert not (output / "errors.csv").exists()


def test_a_mask_that_cannot_be_saved_leaves_the_others(data, model, tmp_path):
    images = sorted((data / "imagesTr").iterdir())
    for path in images[3:]:
        path.unlink()
    output = tmp_path / "masks"
    taken = output / images[1].name.replace(".nii.gz", "_seg.nii.gz")
    (taken / "full").mkdir(parents=True)  # a folder in the place of the file
    failing("evaluating", "inference", **segmenting(model, data / "imagesTr", output))
    assert listed(output / "errors.csv") == [str(images[1])]
    assert {path.name for path in output.glob("*_seg.nii.gz") if path.is_file()} == {
        images[i].name.replace(".nii.gz", "_seg.nii.gz") for i in (0, 2)
    }


def test_the_command_ends_with_the_list_and_without_a_traceback(data, model, tmp_path):
    images = sorted((data / "imagesTr").iterdir())
    for path in images[2:]:
        path.unlink()
    text(images[0])
    words = command(
        "evaluating", "hippocampus", "inference", **segmenting(model, data / "imagesTr", tmp_path / "masks")
    )
    done = forks.run(words, ROOT)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert masks(tmp_path / "masks") == {images[1].name.removesuffix(".nii.gz")}
    first, last = done.stderr.strip().splitlines()[-2:]
    assert first == f"1 of 2 cases failed, listed in {tmp_path}/masks/errors.csv:"
    assert last.startswith(f"{images[0]}: ")
    assert "Traceback" not in done.stderr


def test_training_names_all_bad_cases_of_all_parts_before_the_first_step(data, tmp_path):
    options = {**SHORT, **paths("hippocampus", data, tmp_path)}
    config = monai.bundle.ConfigParser()
    config.read_config(config_files("hippocampus", "train"))
    config.update(options)
    parts = config.get_parsed_content("parts")
    bad = [
        *((parts["train"][i], key, breaks) for i, key, breaks in ((0, "image", text), (2, "label", truncated))),
        *((parts["validation"][i], key, breaks) for i, key, breaks in ((1, "label", shifted), (2, "image", constant))),
        (parts["test"][3], "label", shifted),
    ]
    originals = {Path(case[key]): Path(case[key]).read_bytes() for case, key, _ in bad}
    for case, key, breaks in bad:
        breaks(Path(case[key]))
    message = failing("training", "train", **options)
    assert listed(tmp_path / "output" / "errors.csv") == [case[key] for case, key, _ in bad]
    assert message.startswith("5 of 10 cases cannot be used")
    assert all(case[key] in message for case, key, _ in bad)
    assert "Nothing has been trained" in message
    assert {p.name for p in (tmp_path / "output").iterdir()} == {"errors.csv"}
    assert not (tmp_path / "model.pt").exists()

    # mended, it trains; what was found to be good before is not read again
    before = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*-*-*")}
    # slices and record of one training case; records of one of validation, three of test
    assert len(before) == 2 + 1 + 3
    for path, content in originals.items():
        path.write_bytes(content)
    run("training", "hippocampus", "train", **options)
    assert not (tmp_path / "output" / "errors.csv").exists()
    after = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*-*-*")}
    assert before.items() <= after.items()
    assert len(after) == 3 * 2 + 3 + 4

    # and a test case that is damaged later is listed by the evaluation, which scores the others
    shifted(Path(parts["test"][1]["label"]))
    failing("evaluating", "train", "evaluate", **options)
    folder = tmp_path / "output" / "evaluation"
    assert listed(folder / "errors.csv") == [parts["test"][1]["label"]]
    with open(folder / "metrics.csv", newline="") as file:
        assert len({row["case"] for row in csv.DictReader(file)}) == 3
