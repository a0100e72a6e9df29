"""Every form of a label gives the class numbers of the plain one, voxel by voxel."""

import importlib.util
import logging

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsaga.dicom_seg import write_seg
from medsaga.reading import Grid, ReadingError, open_image
from medsaga.reading.dicom import series_files
from medsaga.reading.dicom_labels import label_names
from medsaga.reading.label_forms import open_label
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged

from ..integration.dicom.series import oblique_affine, write_volume
from .label_files import CLASSES, FORMS, label, write_structures

SHAPE = (24, 20, 6)
KEYS = ["image", "label"]
_FLIPPED = np.array([[0, 0, 3.5, -40.0], [0.8, 0, 0, 11], [0, -1.2, 0, 70], [0, 0, 0, 1]])
AFFINES = {
    "oblique": oblique_affine((0.7, 1.1, 4.0), (30, -20, 55), False),
    "oblique, slices the other way": oblique_affine((1.5, 0.9, 2.0), (-7, 12, 3), True),
    "axes permuted and flipped": _FLIPPED,
}


def _image(folder, affine):
    values = np.random.default_rng(1).integers(0, 500, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), folder / "image.nii.gz")
    return str(folder / "image.nii.gz")


def _read(image, value, plane=True):
    data = ReadImaged(KEYS, class_names=CLASSES)({"image": image, "label": value})
    data = OrientSlicesd(KEYS, "axial")(data) if plane else data
    return CheckCased(len(CLASSES))(data)["label"]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_plain_label(tmp_path, form, affine):
    image, truth = _image(tmp_path, affine), label(SHAPE)
    nib.save(nib.Nifti1Image(truth, affine), tmp_path / "plain.nii.gz")
    value = FORMS[form](truth, affine, tmp_path)
    value = value if isinstance(value, dict) else str(value)
    as_stored = _read(image, value, plane=False)
    np.testing.assert_array_equal(as_stored[0].numpy(), truth)
    np.testing.assert_allclose(as_stored.affine, affine, atol=1e-4)
    found, plain = _read(image, value), _read(image, str(tmp_path / "plain.nii.gz"))
    np.testing.assert_array_equal(found.numpy(), plain.numpy())


@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom writes SEG: medsaga[label]")
@pytest.mark.parametrize("flip", [False, True])
def test_seg_is_the_plain_label_on_its_series_and_on_its_conversion(tmp_path, flip):
    affine, truth = oblique_affine((0.8, 1.3, 3.0), (10, 20, 30), flip), label(SHAPE)
    values = np.random.default_rng(1).integers(0, 500, SHAPE).astype(np.int16)
    (tmp_path / "series").mkdir()
    write_volume(tmp_path / "series", values, affine, "CT", "p")
    series = open_image(tmp_path / "series")
    # the reader's slices may run the other way than they were made
    back = np.rint(np.linalg.inv(affine) @ series.grid.affine).astype(int)
    mine = truth if back[2, 2] > 0 else truth[..., ::-1]
    write_seg(mine, series.grid, dict(enumerate(CLASSES)), series_files(tmp_path / "series"), tmp_path / "seg.dcm")
    assert label_names(tmp_path / "seg.dcm") == list(CLASSES[1:])
    found = _read(str(tmp_path / "series"), str(tmp_path / "seg.dcm"), plane=False)
    np.testing.assert_array_equal(found[0].numpy(), mine)
    # converted, with its axes turned
    image = nib.Nifti1Image(values, affine).as_reoriented([[1, -1], [0, 1], [2, -1]])
    turned = nib.Nifti1Image(truth, affine).as_reoriented([[1, -1], [0, 1], [2, -1]])
    nib.save(image, tmp_path / "image.nii.gz")
    found = _read(str(tmp_path / "image.nii.gz"), str(tmp_path / "seg.dcm"), plane=False)
    np.testing.assert_array_equal(found[0].numpy(), np.asarray(turned.dataobj))


# --- pictures


def test_pictures_of_classes_and_objects(tmp_path):
    truth = label((24, 20))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray((truth == 1).T).save(tmp_path / "liver.png")  # 1 bit
    for n, part in enumerate([truth[:, :10] == 2, truth[:, 10:] == 2]):
        whole = np.zeros(truth.shape, np.uint8)
        whole[:, 10 * n : 10 * n + 10] = part * 255
        Image.fromarray(np.dstack([whole.T] * 3 + [np.full_like(whole.T, 255)])).save(tmp_path / f"kidney{n}.png")
    Image.fromarray((truth == 3).astype(np.uint16).T * 65535).save(tmp_path / "tumour.tif")
    paths = {"liver": "liver.png", "left kidney": ["kidney0.png", "kidney1.png"], "tumour": ["tumour.tif"]}
    value = {
        name: [str(tmp_path / p) for p in path] if isinstance(path, list) else str(tmp_path / path)
        for name, path in paths.items()
    }
    np.testing.assert_array_equal(_read(str(tmp_path / "image.png"), value, plane=False)[0].numpy(), truth)
    del value["left kidney"]
    value["tumour"] = []
    found = _read(str(tmp_path / "image.png"), value, plane=False)[0].numpy()
    np.testing.assert_array_equal(found, truth == 1)


def test_edges_that_jpeg_smears_are_no_class(tmp_path):
    truth = label((240, 200)) == 1
    Image.fromarray(truth.T).convert("L").save(tmp_path / "mask.jpg", quality=75)
    stored = np.asarray(Image.open(tmp_path / "mask.jpg")).T
    assert (stored[~truth] > 0).any(), "the case that is tested"
    found = open_label({"Liver": str(tmp_path / "mask.jpg")}, CLASSES).load()
    np.testing.assert_array_equal(found, truth)


# --- overlaps


def _overlapping():
    """Two classes of which the second lies in the first, as BraTS's enhancing tumour in the whole one."""
    whole, core = np.zeros((2, 8, 9, 3), bool)
    whole[1:7, 1:7], core[2:4, 2:5] = True, True
    return whole, core, whole.astype(np.uint8) + core


NAMES = ("background", "whole", "core")


@pytest.mark.parametrize("form", ["channels", "with background", "files", "files the other way round"])
def test_where_classes_overlap_the_later_one_is_taken_with_a_notice(tmp_path, caplog, form):
    whole, core, truth = _overlapping()
    if "files" in form:
        value = {}
        for name, mask in {"whole": whole, "core": core}.items():
            nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), tmp_path / f"{name}.nii")
            value[name] = tmp_path / f"{name}.nii"
        value = dict(reversed(value.items())) if "other" in form else value
    else:
        value = tmp_path / "label.nii"
        channels = [whole, core] if form == "channels" else [~whole, whole, core]
        nib.save(nib.Nifti1Image(np.stack(channels, -1).astype(np.uint8), np.eye(4)), value)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(open_label(value, NAMES).load(), truth)
    (record,) = caplog.records
    assert str(tmp_path) in record.getMessage()
    assert f"{core.sum()} voxels belong to both whole and core; they are counted as core" in record.getMessage()


def test_of_probabilities_the_largest_is_taken(tmp_path):
    values = np.zeros((2, 2, 1, 3), np.float32)
    values[0, 0, 0], values[0, 1, 0], values[1, 0, 0] = (0.2, 0.5, 0.3), (0.4, 0.2, 0.39), (0.1, 0.3, 0.6)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "p.nii")
    assert open_label(tmp_path / "p.nii", NAMES).load()[..., 0].tolist() == [[1, 0], [2, 0]]


# --- what is refused, and what is said


def _nii(folder, values, affine=None, name="label.nii"):
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), folder / name)
    return str(folder / name)


_GRID = Grid((4, 4, 2), np.eye(4))


@pytest.mark.parametrize(
    ("value", "names", "words"),
    [
        (lambda f: _nii(f, np.zeros((4, 4, 2, 5), np.uint8)), NAMES, "label has 5 channels.*3 channels.*or 2"),
        (lambda f: _nii(f, np.zeros((4, 4, 2, 2), np.uint8)), None, "label has 2 channels.*class_names"),
        (lambda f: _nii(f, np.full((4, 4, 2, 3), 2, np.uint8)), NAMES, "values from 2 to 2"),
        (lambda f: _nii(f, np.full((4, 4, 2, 3), np.nan)), NAMES, "values from nan"),
        (lambda f: _nii(f, np.full((4, 4, 2, 3), -0.5)), NAMES, "values from -0.5"),
        (lambda f: _nii(f, np.arange(96, dtype=np.uint8).reshape(4, 4, 2, 3) * 2 + 65), NAMES, "values from 65 to 255"),
        (lambda f: {"whole": _nii(f, np.zeros((4, 4, 2), np.uint8))}, None, "class_names"),
        (lambda f: {"whole": _nii(f, np.full((4, 4, 2), 3.5))}, NAMES, "such as 3.5"),
        (lambda f: {"whole": _nii(f, np.zeros((4, 4, 2, 2), np.uint8))}, NAMES, "2 channels; expected 1, the mask"),
        (
            lambda f: {"whole": _nii(f, np.eye(4)[..., None]), "core": _nii(f, np.eye(5)[..., None], name="b.nii")},
            NAMES,
            r"b.nii: its shape is \(5, 5, 1\), but .*label.nii of the same label",
        ),
        (
            lambda f: {
                "whole": _nii(f, np.eye(4)[..., None]),
                "core": _nii(f, np.eye(4)[..., None], np.diag([1.0, 1, -1, 1]) + np.eye(4, k=3), name="b.nii"),
            },
            NAMES,
            "b.nii: by its header it lies up to 1.0 voxels away",
        ),
        (lambda f: [str(f / "a.nii")], NAMES, "for each class a path"),
        (lambda f: {"whole": [str(f / "gone.nii")]}, NAMES, "gone.nii: there is no such file"),
    ],
)
def test_what_cannot_be_a_label_is_refused_by_name(tmp_path, value, names, words):
    with pytest.raises((ReadingError, FileNotFoundError), match=words):
        open_label(value(tmp_path), names, _GRID).load()


@pytest.mark.parametrize("value", [{}, {"whole": []}, {"hole": ["a.nii"]}])
def test_a_label_without_a_class_is_background_on_its_image(value):
    found = open_label(value, NAMES, _GRID)
    assert found.grid == _GRID and not found.load().any() and found.load().shape == (4, 4, 2)
    assert [("hole" in n and "whole, core" in n) for n in found.notices] == [True] * ("hole" in value)


# --- contours


def _circle(radius, centre, k, affine, points=2000):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    voxels = np.c_[centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), np.full(points, k)]
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def _disc(radius, centre, shape):
    i, j = np.indices(shape[:2])
    return (i - centre[0]) ** 2 + (j - centre[1]) ** 2 < radius**2


def _from_structures(folder, regions, grid, **options):
    return open_label(write_structures(folder / "rt.dcm", regions, **options), NAMES, grid).load()


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_circles_are_drawn_where_they_are(tmp_path, affine):
    """Against x² + y² < r²: two in one slice, a ring, and one across another axis."""
    grid = Grid((60, 50, 7), affine)
    truth = np.zeros(grid.shape, np.uint8)
    whole = [_circle(9.3, (20.2, 18.7), 2, affine), _circle(4.41, (44, 30), 2, affine)]
    truth[..., 2] = _disc(9.3, (20.2, 18.7), grid.shape) | _disc(4.41, (44, 30), grid.shape)
    whole += [_circle(12.6, (25, 25), 3, affine), _circle(5.57, (26, 24), 3, affine)]
    truth[..., 3] = _disc(12.6, (25, 25), grid.shape) & ~_disc(5.57, (26, 24), grid.shape)
    turned = affine[:, [1, 2, 0, 3]]  # across the image's first axis
    across = [_circle(2.3, (20, 3), 50, turned)]
    truth[50] = np.where(_disc(2.3, (20, 3), (50, 7)), 2, truth[50])
    found = _from_structures(tmp_path, {"whole": whole, "Core ": across}, grid)
    np.testing.assert_array_equal(found, truth)


def test_a_keyhole_is_a_hole(tmp_path):
    """One contour that goes in to the hole and back along one line."""
    grid = Grid((40, 40, 3), np.eye(4))
    outer, inner = _circle(15.2, (20, 20), 1, np.eye(4)), _circle(6.3, (20, 20), 1, np.eye(4))
    outer, inner = np.r_[outer, outer[:1]], np.r_[inner, inner[:1]][::-1]
    found = _from_structures(tmp_path, {"whole": [np.r_[outer, inner]]}, grid)[..., 1]
    truth = _disc(15.2, (20, 20), grid.shape) & ~_disc(6.3, (20, 20), grid.shape)
    on_the_line = np.zeros_like(truth)
    on_the_line[26:, 20] = True
    np.testing.assert_array_equal(found[~on_the_line], truth[~on_the_line])


def test_contours_through_centres_of_voxels_take_these_in(tmp_path):
    """As tools draw them that follow a mask's outer pixels."""
    affine = AFFINES["oblique"]
    corners = np.array([[3, 4, 1], [9, 4, 1], [9, 8, 1], [3, 8, 1]]) @ affine[:3, :3].T + affine[:3, 3]
    found = _from_structures(tmp_path, {"core": [corners]}, Grid((12, 12, 3), affine))
    truth = np.zeros((12, 12, 3), np.uint8)
    truth[3:10, 4:9, 1] = 2
    np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize(
    ("contour", "words"),
    [
        (_circle(3, (5, 5), 1.4, np.eye(4)), "0.40 voxels away"),
        (_circle(3, (5, 5), 7, np.eye(4)), "slice 7, but the image has 3 slices"),
        (_circle(3, (5, 5), -1, np.eye(4)), "slice -1, but the image has 3 slices"),
        (_circle(3, (5, 5), 1, np.eye(4)) @ oblique_affine((1, 1, 1), (0, 0, 0), False)[:3, :3], "voxels away"),
        (np.array([[np.nan, 1, 1]]), "3 for each point|cannot be read"),
    ],
)
def test_contours_of_another_series_are_refused(tmp_path, contour, words):
    with pytest.raises(ReadingError, match=f"^{tmp_path}/rt.dcm: .*({words})"):
        _from_structures(tmp_path, {"whole": [contour]}, Grid((12, 12, 3), np.eye(4)))


def test_what_structures_leave_out_is_said(tmp_path, caplog):
    grid = Grid((20, 20, 9), np.eye(4))
    circles = [_circle(3, (9, 9), k, np.eye(4)) for k in (0, 2, 4, 6)]
    found = _from_structures(tmp_path, {"whole": circles, "BODY": circles}, grid)
    assert found.any(axis=(0, 1)).tolist() == [True, False] * 3 + [True, False, False]
    assert "only on every 2. slice" in caplog.text
    assert not _from_structures(tmp_path, {"whole": circles}, grid, kind="POINT").any()
    assert "enclose nothing (POINT)" in caplog.text
    strange = open_label(write_structures(tmp_path / "rt.dcm", {"BODY": circles}), NAMES, grid)
    assert "none of the classes whole, core" in strange.notices[0] and not strange.load().any()
    assert label_names(tmp_path / "rt.dcm") == ["BODY"]


def test_structures_need_an_image_in_space(tmp_path):
    path = write_structures(tmp_path / "rt.dcm", {"whole": [_circle(3, (9, 9), 0, np.eye(4))]})
    with pytest.raises(ReadingError, match="give the case's image"):
        open_label(path, NAMES)
    with pytest.raises(ReadingError, match="its image has none"):
        open_label(path, NAMES, Grid((20, 20), np.eye(4), placed=False)).load()


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_object_is_refused_by_name(tmp_path, part):
    path = write_structures(tmp_path / "rt.dcm", {"whole": [_circle(3, (9, 9), 1, np.eye(4))]})
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ReadingError, match=r"rt\.dcm: "):
        open_label(path, NAMES, Grid((20, 20, 3), np.eye(4))).load()
