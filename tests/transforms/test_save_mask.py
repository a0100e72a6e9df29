from __future__ import annotations

import resource
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from medsaga.transforms import OrientSlicesd, SaveMaskd

FORMATS = [".nii.gz", ".nii", ".nrrd", ".mha", ".png"]


def oblique_affine(shear=0.0):
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [31, 17, 45], degrees=True).as_matrix()
    affine[:3, :3] = rotation @ (np.eye(3) + shear * np.eye(3, k=1)) @ np.diag([0.7123456789, 1.3, 2.9])
    affine[:3, 3] = [-123.456789012, 33.3, 812.123456789]
    return affine


def random_mask(shape=(5, 6, 7)):
    return np.random.RandomState(0).randint(0, 4, shape).astype(np.uint8)


def prediction(values, affine=None, source="/data/a.nii.gz", **meta):
    affine = oblique_affine() if affine is None else affine
    return {
        "pred": MetaTensor(
            torch.tensor(values)[None], affine=torch.tensor(affine), meta={"filename_or_obj": source, **meta}
        )
    }


def saved_to(out):
    return out["pred"].meta["saved_to"]


@pytest.mark.parametrize("shear", [0, 1e-3])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 1), (1, 6, 7), (5, 1, 1)])
@pytest.mark.parametrize("extension", [".nii.gz", ".nii"])
def test_nifti_has_shape_and_affine_of_the_image(shear, shape, extension, tmp_path):
    values, affine = random_mask(shape), oblique_affine(shear)
    out = SaveMaskd("pred", tmp_path / "out", output_ext=extension)({**prediction(values, affine), "patient": "p1"})
    assert out["patient"] == "p1"
    assert saved_to(out) == str(tmp_path / "out" / f"a_seg{extension}")
    image = nib.load(saved_to(out))
    assert image.shape == shape
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(image.dataobj), values)
    sform, code = image.get_sform(coded=True)
    assert np.array_equal(sform, affine.astype(np.float32))
    assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    # readers that prefer the qform see the nearest rotation, with the same spacing and origin
    qform, code = image.get_qform(coded=True)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    assert code == 1
    assert np.abs(qform[:3, :3] / spacing - polar(affine[:3, :3] / spacing)[0]).max() < 1e-6
    assert np.abs(qform[:3, 3] - affine[:3, 3]).max() < 1e-4


@pytest.mark.parametrize("shear", [0, 1e-3])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 1)])
def test_nrrd_has_shape_and_affine_of_the_image(shear, shape, tmp_path):
    values, affine = random_mask(shape), oblique_affine(shear)
    read, header = nrrd.read(saved_to(SaveMaskd("pred", tmp_path, output_ext=".nrrd")(prediction(values, affine))))
    assert np.array_equal(read, values)
    assert header["space"] == "left-posterior-superior"
    to_ras = np.diag([-1, -1, 1])
    assert np.abs(to_ras @ header["space directions"].T - affine[:3, :3]).max() < 1e-12
    assert np.abs(to_ras @ header["space origin"] - affine[:3, 3]).max() < 1e-9


@pytest.mark.parametrize("shear", [0, 1e-3])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 1)])
def test_metaimage_has_shape_and_affine_of_the_image(shear, shape, tmp_path):
    affine = oblique_affine(shear)
    path = saved_to(SaveMaskd("pred", tmp_path, output_ext=".mha")(prediction(random_mask(shape), affine)))
    text = Path(path).read_bytes().split(b"ElementDataFile")[0].decode()
    header = dict(line.split(" = ") for line in text.splitlines())
    numbers = {
        key: np.array(header[key].split(), dtype=float) for key in ("TransformMatrix", "Offset", "ElementSpacing")
    }
    directions = numbers["TransformMatrix"].reshape(3, 3).T * numbers["ElementSpacing"]
    assert header["DimSize"] == "{} {} {}".format(*shape)
    assert np.abs(np.diag([-1, -1, 1]) @ directions - affine[:3, :3]).max() < 1e-12
    assert np.abs(np.diag([-1, -1, 1]) @ numbers["Offset"] - affine[:3, 3]).max() < 1e-9


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("affine", [np.diag([-0.5, -0.7, 1]), np.diag([-0.5, -0.7, 1, 1])])
def test_2d_mask_is_one_slice(extension, affine, tmp_path):
    values = random_mask((5, 6))
    path = saved_to(SaveMaskd("pred", tmp_path, output_ext=extension)(prediction(values, affine)))
    if extension == ".nii.gz":
        image = nib.load(path)
        assert image.shape == (5, 6, 1)
        assert np.array_equal(image.affine, np.diag([-0.5, -0.7, 1, 1]).astype(np.float32))
        assert np.array_equal(np.asarray(image.dataobj)[..., 0], values)
    elif extension == ".nrrd":
        read, header = nrrd.read(path)
        assert np.array_equal(read[..., 0], values)
        assert np.abs(header["space directions"] - np.diag([0.5, 0.7, 1])).max() < 1e-12


@pytest.mark.parametrize("affine", [np.diag([-1.0, -1, 1]), np.diag([1.0, -1, 1]), np.diag([-1.0, -1, 1, 1])])
def test_png_lies_on_its_picture(affine, tmp_path):
    """Through ``OrientSlicesd`` and back, pixel for pixel as Pillow reads both."""
    drawn = np.zeros((40, 60), dtype=np.uint8)  # rows, columns
    drawn[3:10, 20:50] = 200
    drawn[30:35, 2:5] = 100
    Image.fromarray(drawn).save(tmp_path / "x.ray.png")
    pixels = np.asarray(Image.open(tmp_path / "x.ray.png")).T.astype(
        np.float32
    )  # as files' axes are read: columns first
    image = prediction(pixels, affine, str(tmp_path / "x.ray.png"))["pred"]
    orient = OrientSlicesd("image")
    oriented = orient({"image": image})["image"]
    mask = orient.inverse({"image": (oriented / 100).to(torch.uint8)})["image"]
    path = saved_to(SaveMaskd("pred", tmp_path / "out", output_ext=".png")({"pred": mask}))
    assert path == str(tmp_path / "out" / "x.ray_seg.png")
    with Image.open(path) as read:
        assert read.mode == "L"
        assert np.array_equal(np.asarray(read), drawn // 100)


@pytest.mark.parametrize(
    ("source", "meta", "name"),
    [
        ("/d/1.2.840.113619.2.55.10", {}, "1.2.840.113619.2.55.10_seg.nii.gz"),
        ("/d/1.2.840.113619.2.55.11", {}, "1.2.840.113619.2.55.11_seg.nii.gz"),
        ("/d/A.Huber.nii.gz", {}, "A.Huber_seg.nii.gz"),
        ("/d/scan.nrrd", {"case": "scan.nrrd"}, "scan.nrrd_seg.nii.gz"),
        ("/d/im.dcm", {"case": "patient 1"}, "patient 1_seg.nii.gz"),
    ],
)
def test_names_of_cases_stay_whole(source, meta, name, tmp_path):
    out = SaveMaskd("pred", tmp_path)(prediction(random_mask(), source=source, **meta))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert saved_to(out) == str(tmp_path / name)


def test_postfix_is_the_configs(tmp_path):
    SaveMaskd("pred", tmp_path, output_postfix="mask")(prediction(random_mask()))
    assert [path.name for path in tmp_path.iterdir()] == ["a_mask.nii.gz"]


def test_mask_of_another_image_is_not_written_over(tmp_path):
    save, first = SaveMaskd("pred", tmp_path), random_mask()
    path = saved_to(save(prediction(first, source="/data/scan.nii.gz")))
    with pytest.raises(ValueError, match=r"^/data/scan\.nrrd: its mask .* that of /data/scan\.nii\.gz, as .*scan_seg"):
        save(prediction(1 - first % 2, source="/data/scan.nrrd"))
    assert np.array_equal(np.asarray(nib.load(path).dataobj), first)
    # the same image again, and another run, are no mistake
    save(prediction(first, source="/data/scan.nii.gz"))
    SaveMaskd("pred", tmp_path)(prediction(1 - first % 2, source="/data/scan.nrrd"))
    assert np.array_equal(np.asarray(nib.load(path).dataobj), 1 - first % 2)


@pytest.fixture
def full_disk():
    """A limit on the size of files: a write past it fails as on a full disk (Python ignores the signal)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize(("length", "size"), [(5, 60), (60, 200), (300, 5000)])  # a file that fits a buffer, and others
def test_full_disk_leaves_what_was_there(extension, length, size, full_disk, tmp_path):
    save = SaveMaskd("pred", tmp_path, output_ext=extension)
    path = tmp_path / f"a_seg{extension}"
    path.write_bytes(b"of an earlier run")
    full_disk(size)
    try:
        with pytest.raises(OSError, match=f"a_seg{extension}"):
            save(prediction(random_mask((length, length, 1))))
    finally:
        full_disk(resource.RLIM_INFINITY)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"of an earlier run"
    save(prediction(random_mask((length, length, 1)), source="/data/another/a.nii"))  # a mask not written is in no way


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        SaveMaskd("pred", tmp_path / "file")(prediction(random_mask()))


def test_formats_that_are_not_written_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"output_ext is '\.jpg'; it must be one of \.nii\.gz, \.nii, "):
        SaveMaskd("pred", tmp_path, output_ext=".jpg")


@pytest.mark.parametrize(
    ("values", "extension", "message"),
    [
        (random_mask(), ".png", r"a\.nii\.gz: a volume cannot be a PNG"),
        (random_mask() + 0.5, ".nii.gz", r"a\.nii\.gz: its mask has values that are not whole numbers"),
        (random_mask() - 1.0, ".nii.gz", r"a\.nii\.gz: its mask has values"),
        (np.full((2, 3, 4), np.nan), ".nii.gz", r"a\.nii\.gz: its mask has values"),
        (random_mask().astype(np.int64) + 254, ".nii.gz", r"a\.nii\.gz: its mask has values"),
        (random_mask((2, 3, 4, 5)), ".nii.gz", r"a\.nii\.gz: its mask has the shape \(1, 2, 3, 4, 5\)"),
    ],
)
def test_what_is_no_mask_is_refused(values, extension, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SaveMaskd("pred", tmp_path, output_ext=extension)(prediction(values))
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_of_another_type_are_class_numbers(tmp_path):
    path = saved_to(SaveMaskd("pred", tmp_path)(prediction(random_mask().astype(np.float32))))
    assert nib.load(path).get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(nib.load(path).dataobj), random_mask())
