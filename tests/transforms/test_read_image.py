"""Several sequences as channels, against nibabel's values and SciPy's interpolation."""

import logging

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, ScaleIntensityRangePercentilesd
from PIL import Image
from scipy.ndimage import map_coordinates

from medsaga.reading import ReadingError
from medsaga.reading.sequences import sequence_files, sequence_name
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged

from ..integration.dicom.series import oblique_affine, write_volume

SHAPE = (14, 12, 5)
AFFINE = oblique_affine((0.9, 1.2, 3.0), (10, -20, 30), False)


def _values(number, shape=SHAPE):
    return np.random.default_rng(number).integers(0, 900, shape).astype(np.int16)


def _save(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


@pytest.fixture
def files(tmp_path):
    """The sequences FLAIR and T1c of one patient, and beside them those of another."""
    for patient in ("a", "b"):
        for number, end in enumerate(("FLAIR", "T1c")):
            _save(tmp_path / f"{patient}_{end}.nii.gz", _values(number + (patient == "b")))
    return [str(tmp_path / "a_FLAIR.nii.gz"), str(tmp_path / "a_T1c.nii.gz")]


@pytest.mark.parametrize("form", ["list", "first", "one file"])
def test_sequences_are_channels_in_their_order(tmp_path, files, form):
    truth = np.stack([_values(0), _values(1)])
    value = {"list": files, "first": files[0], "one file": _save(tmp_path / "all.nii", np.moveaxis(truth, 0, -1))}[form]
    sequences = ("_FLAIR", "_T1c") if form == "first" else None
    image = ReadImaged("image", sequences=sequences)({"image": value})["image"]
    np.testing.assert_array_equal(image.numpy(), truth)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    first = value if form == "one file" else files[0]
    assert image.meta["filename_or_obj"] == first
    assert image.meta["case"] == ("all" if form == "one file" else "a_FLAIR")


def test_sequences_go_through_a_bundles_preprocessing_and_back(files):
    """Turned as one, each scaled by its own percentiles."""
    preprocessing = Compose(
        [
            ReadImaged("image", sequences=["_FLAIR", "_T1c"]),
            OrientSlicesd("image", "axial"),
            CheckCased(2, num_channels=2),
            ScaleIntensityRangePercentilesd("image", 0, 100, 0, 1, clip=True, channel_wise=True),
        ]
    )
    image = preprocessing({"image": files[0]})["image"]
    alone = [preprocessing.transforms[1](ReadImaged("image")({"image": file}))["image"] for file in files]
    for channel, single in zip(image, alone):
        low, high = float(single.min()), float(single.max())
        np.testing.assert_allclose(channel.numpy(), (single[0].numpy() - low) / (high - low), atol=1e-5)
    back = preprocessing.transforms[1].inverse({"image": image})["image"]
    assert back.shape == (2, *SHAPE)
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)


def test_dicom_series_beside_one_another_are_sequences(tmp_path):
    values = {end: _values(n) for n, end in enumerate(("FLAIR", "T1c"))}
    for end, of_sequence in values.items():
        (tmp_path / f"a_{end}").mkdir()
        write_volume(tmp_path / f"a_{end}", of_sequence, AFFINE, "MR", "p")
    image = ReadImaged("image", sequences=["_FLAIR", "_T1c"])({"image": str(tmp_path / "a_FLAIR")})["image"]
    single = ReadImaged("image")({"image": str(tmp_path / "a_T1c")})["image"]
    assert image.meta["case"] == "a_FLAIR"
    np.testing.assert_array_equal(image[1].numpy(), single[0].numpy())
    assert set(np.unique(image[0].numpy())) == set(np.unique(values["FLAIR"]))


# --- other grids


def test_another_grid_is_resampled_to_the_first(tmp_path, files, caplog):
    """Of other directions, spacing and extent: linearly, by the header, nearest values outside."""
    other = AFFINE @ np.array([[0, 0.6, 0, 1], [-0.7, 0.1, 0, 10], [0, 0, 0.8, -0.4], [0, 0, 0, 1]])
    moved = _values(7, (15, 26, 9))
    path = _save(tmp_path / "other.nii.gz", moved, other)
    with caplog.at_level(logging.WARNING):
        image = ReadImaged("image")({"image": [files[0], path]})["image"]
    index = np.indices(SHAPE).reshape(3, -1)
    to_other = np.linalg.inv(other) @ AFFINE
    places = to_other[:3, :3] @ index + to_other[:3, 3:]
    expected = map_coordinates(moved.astype(float), places, order=1, mode="nearest").reshape(SHAPE)
    np.testing.assert_array_equal(image[0].numpy(), _values(0))
    np.testing.assert_allclose(image[1].numpy(), expected, atol=0.2)
    inside = ((places >= -0.5) & (places <= np.array(moved.shape)[:, None] - 0.5)).all(axis=0).mean()
    assert 0.3 < inside < 1
    (record,) = (record for record in caplog.records if record.name.startswith("medsaga"))
    assert record.getMessage().startswith(f"{path}: ") and f"it covers {inside:.0%} of it" in record.getMessage()
    assert image.meta["filename_or_obj"] == files[0] and not image.applied_operations


def test_the_same_grid_is_not_resampled(tmp_path, files, caplog):
    """Headers that differ by rounding are those of one grid."""
    path = _save(tmp_path / "other.nii.gz", _values(7), AFFINE + np.eye(4, k=3) * 0.01)
    image = ReadImaged("image")({"image": [files[0], path]})["image"]
    np.testing.assert_array_equal(image[1].numpy(), _values(7))
    assert not [record for record in caplog.records if record.name.startswith("medsaga")]


def test_what_lies_elsewhere_is_refused(tmp_path, files):
    path = _save(tmp_path / "other.nii.gz", _values(7), AFFINE + np.eye(4, k=3) * 500)
    with pytest.raises(ReadingError, match=f"^{path}: by its header it does not overlap {files[0]}"):
        ReadImaged("image")({"image": [files[0], path]})


def test_pictures_of_other_sizes_are_refused(tmp_path):
    for name, side in (("a_1.png", 10), ("a_2.png", 10), ("a_3.png", 12)):
        Image.fromarray(_values(0, (side, 10)).astype(np.uint8)).save(tmp_path / name)
    first, second, third = (str(tmp_path / f"a_{n}.png") for n in (1, 2, 3))
    assert ReadImaged("image")({"image": [first, second]})["image"].shape == (2, 10, 10)
    with pytest.raises(ReadingError, match=f"^{third}: its shape is .*no position in space"):
        ReadImaged("image")({"image": [first, third]})


def test_each_file_of_several_is_one_sequence(tmp_path):
    Image.fromarray(np.dstack([_values(n, (10, 10)).astype(np.uint8) for n in range(3)])).save(tmp_path / "colour.png")
    Image.fromarray(_values(0, (10, 10)).astype(np.uint8)).save(tmp_path / "grey.png")
    with pytest.raises(ReadingError, match=r"colour\.png: it has 3 channels; each of 2 files must have one"):
        ReadImaged("image")({"image": [str(tmp_path / "grey.png"), str(tmp_path / "colour.png")]})


@pytest.mark.parametrize(
    ("channels", "wanted", "words"),
    [
        (2, 1, "it is a 4-D image with 2 volumes, but this bundle takes 1 sequence"),
        (2, 4, "it has 2 channels, but this bundle takes 4 sequences"),
        (1, 2, "it has 1 channel, but this bundle takes 2 sequences"),
    ],
)
def test_another_number_of_sequences_is_refused_with_the_bundles(tmp_path, channels, wanted, words):
    path = _save(tmp_path / "image.nii.gz", np.stack([_values(n) for n in range(channels)], -1))
    image = ReadImaged("image")({"image": path})
    with pytest.raises(ValueError, match=f"^{path}: {words}"):
        CheckCased(2, num_channels=wanted)(image)


# --- names


@pytest.mark.parametrize(
    ("names", "ends", "stem"),
    [
        (("case_01_0000.nii.gz", "case_01_0001.nii.gz"), ("_0000", "_0001"), "case_01"),
        (("A.Huber_dwi.nrrd", "A.Huber_adc.nrrd"), ("_dwi", "_adc"), "A.Huber"),
        (("Flair_subtrMean.mha", "T1c_subtrMean.mha"), ("Flair_subtrMean", "T1c_subtrMean"), ""),
        (("x1.PNG", "x2.PNG"), ("1", "2"), "x"),
    ],
)
def test_sequences_are_found_beside_the_first(tmp_path, names, ends, stem):
    for name in (*names, f"other{names[0]}"):
        (tmp_path / name).touch()
    assert sequence_files(tmp_path / names[0], ends) == [str(tmp_path / name) for name in names]
    assert sequence_name(names[0], ends) == stem


def test_a_sequence_that_is_not_there_is_named(tmp_path, files):
    gone = str(tmp_path / "a_T2.nii.gz")
    with pytest.raises(FileNotFoundError, match=f"^{gone}: there is no such file.*sequence '_T2' of {files[0]}"):
        sequence_files(files[0], ("_FLAIR", "_T2"))
    with pytest.raises(ValueError, match=f"^{files[1]}: .*must end with '_FLAIR.nii.gz'"):
        sequence_files(files[1], ("_FLAIR", "_T1c"))
