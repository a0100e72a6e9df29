"""From a folder of images to a model, a score, a picture and masks, by MONAI's own command."""

import csv
import json
import shutil

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import measure

from .bundles import TWO_EPOCHS, fails, paths, run

SHORT = {
    **TWO_EPOCHS,
    "test_patients": 2,
    "val_patients": 2,
    "train_patients": 4,
    "num_slices": 16,
    "min_classes": 1,
}
TRAINED = {"network_def#encoder": "vit_test", "image_size": 64}


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory):
    """A trained hippocampus bundle: its overrides and the folder of what it wrote."""
    work = tmp_path_factory.mktemp("trained")
    overrides = {**SHORT, **paths("hippocampus", phantoms, work), "ema_momentum": 0.01}
    run("training", "hippocampus", "train", **overrides)
    return overrides, work


def test_training_leaves_model_states_and_curves(trained):
    _, work = trained
    assert {p.name for p in work.iterdir()} == {"cache", "model.pt", "output"}
    last = torch.load(work / "output" / "last.pt", weights_only=True)
    best = torch.load(work / "output" / "best.pt", weights_only=True)
    assert last["progress"] == {"epoch": 2, "iteration": 8}
    assert {"network", "optimizer", "lr_scheduler", "selection"} <= set(last)
    model = torch.load(work / "model.pt", weights_only=True)
    assert all(torch.equal(model[key], value) for key, value in best["average"].items())
    assert not all(torch.equal(model[key], value) for key, value in best["network"].items())
    assert list((work / "output" / "tensorboard").glob("events*"))


def test_evaluation_writes_table_and_pictures(trained):
    overrides, work = trained
    run("evaluating", "hippocampus", "train", "evaluate", **overrides)
    folder = work / "output" / "evaluation"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert len(rows) == 2 * 2  # test patients × classes
    assert {row["class"] for row in rows} == {"anterior", "posterior"}
    assert json.loads((folder / "metrics.json").read_text())["mean"]["dice"]["n"] == 2
    assert "| anterior |" in (folder / "metrics.md").read_text()
    assert {p.stem for p in folder.glob("*.png")} == {row["case"] for row in rows}
    assert Image.open(next(folder.glob("*.png"))).width > 300


def test_a_bundle_learns_from_all_planes_of_slices_that_are_labelled(phantoms, tmp_path):
    """Volumes of which some slices are labelled, the others 255, through training, evaluation and segmentation."""
    folder = shutil.copytree(phantoms, tmp_path / "partly")
    for path in (folder / "labelsTr").iterdir():
        label = nib.load(path)
        values = np.asarray(label.dataobj).astype(np.uint8)
        values[..., ::3] = 255
        nib.save(nib.Nifti1Image(values, label.affine), path)
    more = {"plane": "all", "largest_component": ["anterior"]}
    overrides = {**SHORT, **paths("hippocampus", folder, tmp_path), "num_slices": 10, **more}
    run("training", "hippocampus", "train", **overrides)
    split = json.loads((tmp_path / "output" / "split.json").read_text())
    assert {entry["plane"] for entry in split["slices"]} == {"axial"}, "those that are labelled"
    assert sum(len(entry["slices"]) for entry in split["slices"]) == 10
    assert all(z % 3 for entry in split["slices"] for z in entry["slices"])
    run("evaluating", "hippocampus", "train", "evaluate", **overrides)
    scores = json.loads((tmp_path / "output" / "evaluation" / "metrics.json").read_text())
    assert scores["mean"]["dice"]["n"] == 2
    options = {"output_dir": str(tmp_path / "masks"), "dataset_dir": str(phantoms / "imagesTr"), **more}
    run("evaluating", "hippocampus", "inference", **TRAINED, model_path=str(tmp_path / "model.pt"), **options)
    # the weights say so themselves
    options |= {"output_dir": str(tmp_path / "by_record"), "plane": "auto"}
    run("evaluating", "hippocampus", "inference", **TRAINED, model_path=str(tmp_path / "model.pt"), **options)
    for path in (tmp_path / "masks").glob("*_seg.nii.gz"):
        mask = np.asarray(nib.load(path).dataobj)
        assert (np.asarray(nib.load(tmp_path / "by_record" / path.name).dataobj) == mask).all()
        assert measure.label(mask == 1).max() <= 1
        image = nib.load(phantoms / "imagesTr" / path.name.replace("_seg", ""))
        assert mask.shape == image.shape and np.allclose(nib.load(path).affine, image.affine)


def oblique(case, path):
    """The same volume as if the patient lay turned, left-right mirrored and with thick slices."""
    image = nib.load(case)
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([-0.8, 1.1, 3.0, 1.0])
    affine[:3, 3] = [31.0, -7.0, 12.0]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    return path


@pytest.mark.parametrize("name", ["case.nii.gz", "case.nrrd"])
def test_a_mask_has_the_geometry_of_its_image(trained, phantoms, tmp_path, name):
    import itk

    _, work = trained
    source = oblique(sorted((phantoms / "imagesTr").iterdir())[0], tmp_path / "source.nii.gz")
    path = tmp_path / "images" / name
    path.parent.mkdir()
    itk.imwrite(itk.imread(str(source), itk.F), str(path))
    options = {"model_path": str(work / "model.pt"), "output_dir": str(tmp_path), "dataset_dir": str(path.parent)}
    run("evaluating", "hippocampus", "inference", **TRAINED, **options)
    mask = nib.load(tmp_path / "case_seg.nii.gz")
    image = nib.load(source)
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1, 2}


@pytest.mark.parametrize("plane", ["auto", "all"])
def test_a_mask_lies_over_its_object(plane, tmp_path):
    """A network that marks bright pixels marks the same voxels whatever the orientation of the file."""
    parser = monai.bundle.ConfigParser()
    from .bundles import config_files

    parser.read_config(config_files("hippocampus", "inference"))
    image = np.zeros((20, 26, 9), np.float32)
    image[3:8, 15:21, 2:5] = 1.0
    for flips in ([1, 1, 1], [-1, 1, 1], [1, -1, -1], [-1, -1, -1]):
        affine = np.diag([*flips, 1.0]) @ np.diag([1.0, 2.0, 3.0, 1.0])
        affine[:3, :3] = affine[:3, :3][:, [1, 0, 2]]  # the file's axes swapped, too
        path = tmp_path / f"case{''.join('p' if f > 0 else 'm' for f in flips)}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), path)
        parser.update({"output_dir": str(tmp_path), "image_size": 26, "bundle_root": ".", "plane": plane})
        parser.parse(reset=True)
        data = parser.get_parsed_content("preprocessing")({"image": str(path)})
        inferer = parser.get_parsed_content("inferer")
        data["pred"] = inferer(data["image"][None], lambda x: torch.cat([0.5 - x, x - 0.5], dim=1))[0]
        parser.get_parsed_content("postprocessing")(data)
        mask = nib.load(tmp_path / path.name.replace(".nii", "_seg.nii"))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), image)
        np.testing.assert_allclose(mask.affine, affine, atol=1e-5)


def test_chest_xray_on_png(tmp_path, sample_data):
    """2-D images go the same way; the mask of a PNG is a PNG of the same size."""
    overrides = {**SHORT, "num_slices": 8, "test_patients": 2, **paths("chest_xray", tmp_path / "data", tmp_path)}
    source = sample_data / "JSRT"
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:10]:
            (tmp_path / "data" / folder / path.name).write_bytes(path.read_bytes())
    run("training", "chest_xray", "train", **overrides)
    run("evaluating", "chest_xray", "train", "evaluate", **overrides)
    rows = list(csv.DictReader((tmp_path / "output" / "evaluation" / "metrics.csv").open()))
    assert [row["class"] for row in rows[:3]] == ["right lung", "left lung", "heart"]
    options = {"dataset_dir": str(tmp_path / "data" / "images"), "output_dir": str(tmp_path / "masks")}
    run("evaluating", "chest_xray", "inference", **TRAINED, model_path=overrides["model_path"], **options)
    masks = sorted((tmp_path / "masks").glob("*_seg.png"))
    assert len(masks) == 10
    assert Image.open(masks[0]).size == Image.open(sorted((source / "images").iterdir())[0]).size


def test_two_png_corners_keep_their_place(tmp_path):
    """Rows and columns of a 2-D mask are those of its image, neither transposed nor mirrored."""
    from .bundles import config_files

    image = np.zeros((30, 44), np.uint8)
    image[2:8, 30:40] = 255
    Image.fromarray(image).save(tmp_path / "case.png")
    parser = monai.bundle.ConfigParser()
    parser.read_config(config_files("chest_xray", "inference"))
    parser.update({"output_dir": str(tmp_path), "image_size": 44, "bundle_root": "."})
    parser.parse(reset=True)
    data = parser.get_parsed_content("preprocessing")({"image": str(tmp_path / "case.png")})
    np.testing.assert_array_equal(np.asarray(data["image"][0]) > 0.5, image > 0)
    inferer = parser.get_parsed_content("inferer")
    data["pred"] = inferer(data["image"][None], lambda x: torch.cat([0.5 - x, x - 0.5], dim=1))[0]
    parser.get_parsed_content("postprocessing")(data)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "case_seg.png")), image > 0)


# --- what a user reads when something is wrong -----------------------------------------------------------------------


def copy_of(phantoms, folder):
    for path in phantoms.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(phantoms)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def test_no_dataset_folder(tmp_path):
    message = fails("training", "hippocampus", "train", **SHORT, **paths("hippocampus", tmp_path / "none", tmp_path))
    assert str(tmp_path / "none") in message
    assert "--dataset_dir" in message


def test_no_trained_model(phantoms, tmp_path):
    options = {"model_path": str(tmp_path / "model.pt"), "dataset_dir": str(phantoms / "imagesTr")}
    message = fails("evaluating", "hippocampus", "inference", **TRAINED, **options)
    assert str(tmp_path / "model.pt") in message
    assert "train the bundle first" in message


def test_no_published_weights_while_offline(phantoms, tmp_path, monkeypatch):
    import requests

    def offline(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setenv("MEDSAGA_WEIGHTS", str(tmp_path / "weights"))
    overrides = {**paths("spleen", phantoms, tmp_path), "test_patients": 1, "val_patients": 1, "train_patients": 1}
    overrides |= {"image_size": 64, "class_names": ["background", "anterior", "posterior"], "num_workers": 0}
    message = fails("training", "spleen", "train", **overrides)
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in message
    assert str(tmp_path / "weights") in message


def broken_shape(image, label):
    data = np.asarray(nib.load(label).dataobj)
    nib.save(nib.Nifti1Image(data[:-1], np.eye(4)), label)


def broken_value(image, label):
    data = np.asarray(nib.load(label).dataobj).copy()
    data[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(data, np.eye(4)), label)


def broken_file(image, label):
    image.write_bytes(image.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("breaks", "culprit", "words"),
    [
        (broken_shape, "label", "they must be equal"),
        (broken_value, "label", "outside the 3 classes"),
        (broken_file, "image", "truncated"),
    ],
)
def test_a_broken_case_is_named(phantoms, tmp_path, breaks, culprit, words):
    data = copy_of(phantoms, tmp_path / "data")
    image = sorted((data / "imagesTr").iterdir())[3]
    case = {"image": image, "label": data / "labelsTr" / image.name}
    breaks(**case)
    overrides = {**SHORT, "test_patients": 1, "val_patients": 1, "train_patients": 10}
    message = fails("training", "hippocampus", "train", **{**overrides, **paths("hippocampus", data, tmp_path)})
    assert str(case[culprit]) in message
    assert words in message
