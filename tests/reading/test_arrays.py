"""Array files against the arrays that were put into them."""

import h5py
import nibabel as nib
import numpy as np
import pytest

from medsaga.data import read_challenge_case
from medsaga.reading import ReadingError, name_without_suffix, open_image
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged

KEYS = ["image", "label"]


def _arrays(shape=(4, 10, 12)):
    """(D, H, W) or (H, W)."""
    random = np.random.default_rng(0)
    label = np.zeros(shape, np.float32)
    label[..., 2:5, 3:9], label[..., 6:8, 1:4] = 1, 2
    label[..., 2, 3] = 2  # no symmetry
    return random.integers(0, 200, shape).astype(np.float32) / 200, label


def _write(path, **arrays):
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip" if np.ndim(values) else None)
    return path


def _read(path):
    return CheckCased(3)(OrientSlicesd(KEYS)(ReadImaged(KEYS)({"image": str(path), "label": str(path)})))


@pytest.mark.parametrize("name", ["case0005.npy.h5", "case0005.h5", "case0005.npz"])
def test_synapse_volumes(tmp_path, name):
    image, label = _arrays()
    data = _read(_write(tmp_path / name, image=image, label=label))
    np.testing.assert_array_equal(data["image"][0].numpy(), np.moveaxis(image, 0, -1))
    np.testing.assert_array_equal(data["label"][0].numpy(), np.moveaxis(label, 0, -1))
    assert data["image"].meta["case"] == name_without_suffix(name) == "case0005"


def test_synapse_slices(tmp_path):
    image, label = _arrays((10, 12))
    data = _read(_write(tmp_path / "case0005_slice012.npz", image=image, label=label))
    np.testing.assert_array_equal(data["image"][0].numpy(), image)
    np.testing.assert_array_equal(data["label"][0].numpy(), label)
    assert open_image(tmp_path / "case0005_slice012.npz").grid.unit == "pixels"


@pytest.mark.parametrize("shape", [(4, 10, 12), (10, 12), (10, 12, 3)])
def test_challenge_cases_lie_as_the_challenge_has_them(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    label = _arrays(shape[:2] if shape[-1] == 3 else shape)[1].astype(np.uint16)
    path = _write(tmp_path / "CT_1.npz", imgs=image, gts=label, spacing=np.array([0.7, 0.9, 5.0]))
    data, theirs = _read(path), read_challenge_case(path)
    np.testing.assert_array_equal(data["label"].numpy(), theirs["label"].numpy())
    np.testing.assert_allclose(np.abs(data["label"].affine[:-1, :-1]), np.abs(theirs["label"].affine[:-1, :-1]))
    assert nib.aff2axcodes(np.asarray(data["label"].affine)) == nib.aff2axcodes(np.asarray(theirs["label"].affine))
    assert data["image"].shape == theirs["image"].shape
    if shape[-1] != 3:
        stored = np.moveaxis(image, 0, -1) if len(shape) == 3 else image
        np.testing.assert_array_equal(data["image"][0].numpy(), stored)
    else:
        np.testing.assert_array_equal(data["image"].numpy(), np.moveaxis(image, -1, 0))
    assert open_image(path).grid.spacing == pytest.approx((0.7, 0.9, 5.0)[: len(data["image"].shape) - 1])


_IMAGE = np.zeros((4, 5, 6), np.uint8)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("arrays", "label", "words"),
    [
        ({"pixels": _IMAGE}, False, "no array 'imgs' or 'image'"),
        ({"image": _IMAGE}, True, "no array 'label'"),
        ({"imgs": _IMAGE, "label": _IMAGE}, True, "no array 'gts'"),
        ({"image": _IMAGE, "label": _IMAGE[:3]}, False, r"label has the shape \(3, 5, 6\)"),
        ({"image": np.zeros((2, 4, 5, 6))}, False, r"image has the shape \(2, 4, 5, 6\)"),
        ({"image": np.zeros((0, 5, 6))}, False, "at least one voxel"),
        ({"imgs": _IMAGE, "spacing": np.array([1, np.nan, 1])}, False, "spacing"),
        ({"imgs": _IMAGE, "spacing": np.array([1, 2])}, False, "spacing"),
        ({"imgs": _IMAGE.astype(complex)}, False, "type complex128"),
        ({"imgs": np.array([b"text"] * 3)}, False, "type .S4"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path, suffix, arrays, label, words):
    path = _write(tmp_path / f"case{suffix}", **arrays)
    with pytest.raises(ReadingError, match=rf"^{path}: .*{words}"):
        open_image(path, label).load()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_truncated_files_are_named(tmp_path, suffix, part):
    path = _write(tmp_path / f"case{suffix}", image=_arrays((8, 40, 50))[0])
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ReadingError, match=rf"^{path}: "):
        open_image(path).load()
    path.write_text("no array\n" * 100)
    with pytest.raises(ReadingError, match=rf"^{path}: its format is not the one"):
        open_image(path)
    with pytest.raises(FileNotFoundError, match="gone"):
        open_image(tmp_path / f"gone{suffix}")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "case.npz", imgs=np.array([{"a": 1}]))
    with pytest.raises(ReadingError, match="holds something other than arrays of numbers"):
        open_image(tmp_path / "case.npz")


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch, suffix):
    path = _write(tmp_path / f"case{suffix}", image=np.zeros((100, 100, 100), np.uint8))
    assert path.stat().st_size < 20_000
    monkeypatch.setenv("MEDSAGA_MAX_IMAGE_GB", "0.003")
    with pytest.raises(ReadingError, match="MEDSAGA_MAX_IMAGE_GB"):
        open_image(path)


@pytest.mark.parametrize("kind", ["external link", "soft link", "virtual", "raw file"])
def test_no_other_file_is_read_through_hdf5(tmp_path, kind):
    _write(tmp_path / "other.h5", image=_IMAGE)
    (tmp_path / "raw.bin").write_bytes(bytes(120))
    with h5py.File(tmp_path / "case.h5", "w") as file:
        if kind == "external link":
            file["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/image")
        elif kind == "soft link":
            file["image"] = h5py.SoftLink("/elsewhere")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(_IMAGE.shape, np.uint8)
            layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image", _IMAGE.shape)
            file.create_virtual_dataset("image", layout)
        else:
            file.create_dataset("image", _IMAGE.shape, np.uint8, external=[(str(tmp_path / "raw.bin"), 0, 120)])
    with pytest.raises(ReadingError, match="no array 'imgs' or 'image'"):
        open_image(tmp_path / "case.h5")
