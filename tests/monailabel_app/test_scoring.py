"""Proposals against labels: closed forms and scipy's distances."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.scoring import DiceScore, HausdorffScore, compare_labels, score_submission
from lib.served_model import ServedModel
from lib.stores import FolderStore

from ..integration.bundles import ROOT

SPACING = np.array([1.0, 2.0, 3.0])
AFFINE = np.diag([*SPACING, 1.0])
CLASSES = {"anterior": 1, "posterior": 2}


def write(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), path)
    return path


def boxes(*places, shape=(20, 22, 12)):
    """Class i + 1 fills the i-th (first, last) box."""
    values = np.zeros(shape, np.uint8)
    for number, (first, last) in enumerate(places, start=1):
        values[tuple(slice(a, b) for a, b in zip(first, last))] = number
    return values


def test_a_box_moved_by_one_voxel(tmp_path):
    label = write(tmp_path / "label.nii.gz", boxes(((2, 2, 2), (12, 12, 10)), ((14, 14, 2), (18, 18, 10))))
    moved = write(tmp_path / "moved.nii.gz", boxes(((2, 3, 2), (12, 13, 10)), ((14, 14, 2), (18, 18, 10))))
    scores = compare_labels(moved, label, CLASSES)
    assert scores["dice"] == pytest.approx({"anterior": 0.9, "posterior": 1.0})
    assert scores["hd95"] == pytest.approx({"anterior": 2.0, "posterior": 0.0}), "one voxel of 2 mm"


def test_class_numbers_are_not_multiplied(tmp_path):
    """MONAI Label's own Dice gives 2 * 4 / (2 + 2) = 2 for a perfect mask of class 2."""
    label = write(tmp_path / "label.nii.gz", boxes(((0, 0, 0), (0, 0, 0)), ((2, 2, 2), (5, 5, 5))))
    assert compare_labels(label, label, CLASSES)["dice"]["posterior"] == 1.0


def test_missing_classes_have_no_value(tmp_path):
    label = write(tmp_path / "label.nii.gz", boxes(((2, 2, 2), (5, 5, 5))))
    empty = write(tmp_path / "empty.nii.gz", boxes())
    assert compare_labels(empty, label, CLASSES) == {
        "dice": {"anterior": 0.0, "posterior": None},
        "hd95": {"anterior": None, "posterior": None},
    }
    assert compare_labels(empty, empty, CLASSES)["dice"] == {"anterior": None, "posterior": None}


def surface_distances(first, second, spacing):
    """Distances in mm of each surface voxel of the first mask to the nearest of the second."""
    surfaces = [np.argwhere(m & ~binary_erosion(m)) * spacing for m in (first, second)]
    return cdist(*surfaces).min(axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_against_scipy_with_classes_up_to_the_edge(tmp_path, seed):
    random = np.random.RandomState(seed)
    pair = []
    for _ in range(2):
        places = []
        for start in (0, 10):
            first = random.randint(0, 4, 3) + np.array([start, 0, 0])
            places.append((first, first + random.randint(4, 8, 3)))
        pair.append(boxes(*places) * (random.rand(20, 22, 12) > 0.2))
    pair[0][0, :, :] = 1  # a surface at the edge of the image
    files = [write(tmp_path / f"{i}.nii.gz", values) for i, values in enumerate(pair)]
    scores = compare_labels(*files, CLASSES)
    for name, number in CLASSES.items():
        a, b = (values == number for values in pair)
        assert scores["dice"][name] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        directed = [np.percentile(surface_distances(*m, SPACING), 95) for m in ((a, b), (b, a))]
        assert scores["hd95"][name] == pytest.approx(max(directed), rel=1e-5)


def test_pictures_are_measured_in_pixels(tmp_path):
    for name, first in (("a", 4), ("b", 7)):
        values = np.zeros((30, 40), np.uint8)
        values[5:15, first : first + 10] = 3
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    scores = compare_labels(tmp_path / "a.png", tmp_path / "b.png", {"heart": 3})
    assert scores == {"dice": {"heart": pytest.approx(0.7)}, "hd95": {"heart": pytest.approx(3.0)}}


def test_other_shapes_are_named(tmp_path):
    files = [write(tmp_path / f"{n}.nii.gz", np.ones((4, 4, n))) for n in (3, 4)]
    with pytest.raises(ValueError, match=r"\(4, 4, 3\).*\(4, 4, 4\)"):
        compare_labels(*files, CLASSES)


# --- in the studies folder ------------------------------------------------------------------------------------------

LABEL = boxes(((2, 2, 2), (12, 12, 10)))
MOVED = boxes(((2, 3, 2), (12, 13, 10)))


@pytest.fixture(scope="module")
def models():
    return {name: ServedModel(ROOT / "bundles" / name) for name in ("hippocampus", "spleen")}


@pytest.fixture
def store(tmp_path, models):
    store = FolderStore(str(tmp_path / "studies"), models=models)
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(np.random.RandomState(0).rand(20, 22, 12).astype(np.float32), AFFINE), image)
    for name in ("first", "second"):
        store.add_image(name, str(image), {})
    return store


def propose(store, tmp_path, image="first", version="model.pt@1700000000000000000"):
    path = write(tmp_path / "proposal.nii.gz", MOVED)
    store.save_label(image, str(path), "original", {"model": "hippocampus", "version": version})


def submit(store, tmp_path, image="first"):
    path = write(tmp_path / "label.nii.gz", LABEL)
    store.save_label(image, str(path), "final", {"client_id": "ann", "model": "hippocampus"})


def scores_file(store):
    return store.private.scores


def test_a_submission_is_scored_and_recorded(store, tmp_path, models):
    propose(store, tmp_path)
    submit(store, tmp_path)
    line = score_submission(store, "first", models)
    assert line == json.loads(scores_file(store).read_text())
    assert line == store.get_image_info("first")["scores"]
    assert line["dice"] == {"anterior": pytest.approx(0.9), "posterior": None}
    assert line["hd95"] == {"anterior": pytest.approx(2.0), "posterior": None}
    assert [line[k] for k in ("image", "model", "annotator", "seen")] == ["first", "hippocampus", "ann", False]
    assert line["model_version"] == "model.pt@1700000000000000000"
    score_submission(store, "first", models)
    assert len(scores_file(store).read_text().splitlines()) == 2


def test_without_a_proposal_or_a_label_nothing_is_recorded(store, tmp_path, models):
    assert score_submission(store, "first", models) is None
    submit(store, tmp_path)
    assert score_submission(store, "first", models) is None
    propose(store, tmp_path, "second")
    assert score_submission(store, "second", models) is None
    assert score_submission(store, "nobody", models) is None
    assert not scores_file(store).exists()


def test_a_proposal_after_a_label_is_marked(store, tmp_path, models, monkeypatch):
    submit(store, tmp_path)
    monkeypatch.setattr("time.time", lambda: 4e9)
    propose(store, tmp_path)
    submit(store, tmp_path)
    assert score_submission(store, "first", models)["seen"] is True


def test_what_fails_is_logged_and_not_raised(store, tmp_path, models, caplog):
    propose(store, tmp_path)
    submit(store, tmp_path)
    with open(store.get_label_uri("first", "original"), "wb") as file:
        file.write(b"damaged")
    assert score_submission(store, "first", models) is None
    assert "first was not scored" in caplog.text


def test_scoring_methods_go_over_all_images_and_only_once(store, tmp_path, models, monkeypatch):
    propose(store, tmp_path)
    submit(store, tmp_path)
    submit(store, tmp_path, "second")
    assert DiceScore(models)({}, store) == {"first": {"anterior": pytest.approx(0.9), "posterior": None}}
    method = HausdorffScore(models)
    assert method({}, store)["first"]["anterior"] == pytest.approx(2.0)
    assert store.get_image_info("first")["dice"]["by_class"]["anterior"] == pytest.approx(0.9)
    written = (tmp_path / "studies" / "datastore_v2.json").read_bytes()
    assert method({}, store)["first"]["anterior"] == pytest.approx(2.0)
    assert (tmp_path / "studies" / "datastore_v2.json").read_bytes() == written
    assert method({"y": "bob"}, store) == {}
    assert set(method.info()) == {"description"}


def test_only_slices_that_are_labelled_count(tmp_path):
    label = write(tmp_path / "label.nii.gz", boxes(((2, 2, 2), (12, 12, 6))))
    proposal = write(tmp_path / "proposal.nii.gz", boxes(((2, 2, 4), (12, 12, 12))))
    assert compare_labels(proposal, label, CLASSES)["dice"]["anterior"] < 0.4
    scores = compare_labels(proposal, label, CLASSES, slices=[0, 4, 5])
    assert (scores["dice"]["anterior"], scores["hd95"]["anterior"]) == (1.0, 0.0)
