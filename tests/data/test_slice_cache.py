from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.transforms import Compose, Lambdad, ScaleIntensityRangePercentilesd
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medsaga.data import SliceDataset, cache_build
from medsaga.data.slice_cache import cache_cases, prepare_cases
from medsaga.processes import processes_for
from medsaga.transforms import CheckCased, OrientSlicesd, ReadImaged

pytestmark = [
    pytest.mark.filterwarnings("ignore:axcodes"),  # "PLS" serves 2-D images, too
    pytest.mark.filterwarnings("ignore:NvImgCodec"),
]

# half precision between 0.5 and 1
STEP = 1 / 2048

RANDOM = np.random.RandomState(0)
# (slice, row, column), rows towards the patient's back and columns towards the left: what a slice must look like
VOLUME = RANDOM.randint(-500, 1500, (4, 7, 5)).astype(np.int16)
LABEL = RANDOM.randint(0, 3, VOLUME.shape).astype(np.uint8)


def scaled(image):
    """The intensities between the two percentiles, by hand."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.clip((image - low) / (high - low), 0, 1)


def slices_of(cached):
    items = [cached.read(i) for i in range(len(cached.classes))]
    return np.stack([item["image"] for item in items]), np.stack([item["label"][0] for item in items])


def assert_slices(cached, image, label):
    """The slices are (D, C, H, W) intensities and (D, H, W) classes as given, and so are the classes they show."""
    images, labels = slices_of(cached)
    assert images.shape == image.shape
    assert np.abs(images - image).max() <= STEP
    assert np.array_equal(labels, label)
    assert cached.classes.tolist() == [[bool((s == c).any()) for c in range(3)] for s in label]


# --- what a slice holds, whatever the file ---------------------------------------------------------------------------


def flip(array, affine, axis):
    shift = np.eye(4)
    shift[axis, axis], shift[axis, 3] = -1, array.shape[axis] - 1
    return np.flip(array, axis), affine @ shift


def permute(array, affine, order):
    return array.transpose(order), affine[:, [*order, 3]]


def oblique(array, affine, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_s, about_r = np.eye(4), np.eye(4)
    about_s[:2, :2] = about_r[1:3, 1:3] = [[c, -s], [s, c]]
    return array, about_r @ about_s @ affine


NIFTI_VARIANTS = {
    "as_is": [],
    "flipped_columns": [(flip, 0)],
    "flipped_rows": [(flip, 1)],
    "flipped_all": [(flip, 0), (flip, 1), (flip, 2)],
    "sagittal": [(permute, (1, 2, 0))],
    "coronal_flipped": [(permute, (0, 2, 1)), (flip, 1)],
    "oblique": [(oblique, 20)],
    "oblique_flipped_sagittal": [(oblique, -15), (permute, (1, 2, 0)), (flip, 2)],
}


@pytest.mark.parametrize("variant", NIFTI_VARIANTS)
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.9, 5)])
def test_slices_are_axial_however_the_nifti_file_stores_them(tmp_path, preprocessing, variant, spacing):
    case = {}
    for key, slices in (("image", VOLUME), ("label", LABEL)):
        array, affine = slices.transpose(2, 1, 0), np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = 31, -17, 5
        for change, argument in NIFTI_VARIANTS[variant]:
            array, affine = change(array, affine, argument)
        case[key] = str(tmp_path / f"{key}.nii.gz")
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), case[key])
    (cached,) = cache_cases([case], preprocessing(), 3, tmp_path / "cache")
    assert_slices(cached, scaled(VOLUME)[:, None], LABEL)


def write_itk(path, slices):
    image = itk.image_from_array(slices)
    image.SetSpacing([0.8, 0.8, 3.0])
    image.SetOrigin([-20.0, 14.0, 60.0])
    itk.imwrite(image, str(path))
    return str(path)


def write_dicom(folder, slices):
    """A CT series; the order of its file names is not that of its positions."""
    folder.mkdir()
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for z, pixels in enumerate(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        file = folder / f"IM{(z * 3) % len(slices):03d}.dcm"
        data = FileDataset(str(file), {}, file_meta=meta, preamble=bytes(128))
        data.is_little_endian, data.is_implicit_VR = True, False
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, study, frame
        data.PatientID, data.PatientName, data.Modality, data.InstanceNumber = "p1", "P^1", "CT", z + 1
        data.Rows, data.Columns = pixels.shape
        data.PixelSpacing, data.SliceThickness = [0.8, 0.8], 3
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-20, 14, 60 + 3 * z]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = np.ascontiguousarray(pixels).tobytes()
        pydicom.dcmwrite(str(file), data, write_like_original=False)
    return str(folder)


WRITERS = {"v.nrrd": write_itk, "v.mha": write_itk, "v.nii.gz": write_itk, "series": write_dicom}


@pytest.mark.parametrize(
    ("image", "label"), [("v.nrrd", "v.nrrd"), ("v.mha", "v.nii.gz"), ("series", "v.nii.gz"), ("series", "v.nrrd")]
)
def test_volumes_of_every_format_give_the_same_slices(tmp_path, preprocessing, image, label):
    case = {}
    for key, name, slices in (("image", image, VOLUME), ("label", label, LABEL)):
        (tmp_path / key).mkdir()
        case[key] = WRITERS[name](tmp_path / key / name, slices)
    (cached,) = cache_cases([case], preprocessing(), 3, tmp_path / "cache")
    assert_slices(cached, scaled(VOLUME)[:, None], LABEL)


def png(path, array):
    Image.fromarray(array).save(path)
    return str(path)


@pytest.mark.parametrize("label_mode", ["grey", "rgb"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_go_the_same_way_as_volumes(tmp_path, preprocessing, channels, label_mode):
    image = RANDOM.randint(0, 256, (9, 6, channels)).astype(np.uint8)
    label = RANDOM.randint(0, 3, (9, 6)).astype(np.uint8)
    case = {
        "image": png(tmp_path / "image.png", image.squeeze()),
        "label": png(tmp_path / "label.png", label if label_mode == "grey" else np.stack([label] * 3, axis=-1)),
    }
    (cached,) = cache_cases([case], preprocessing(), 3, tmp_path / "cache")
    assert_slices(cached, scaled(image.transpose(2, 0, 1))[None], label[None])


def test_pictures_and_volumes_may_be_mixed(tmp_path, preprocessing, write_case):
    image = RANDOM.randint(0, 256, (9, 6)).astype(np.uint8)
    picture = {"image": png(tmp_path / "i.png", image), "label": png(tmp_path / "l.png", image // 100)}
    dataset = SliceDataset([write_case("a"), picture], preprocessing(), 3, tmp_path / "cache")
    assert [tuple(dataset[i]["image"].shape) for i in range(len(dataset))] == [(1, 7, 6)] * 5 + [(1, 9, 6)]


def test_real_volume_is_cached_as_the_preprocessing_gives_it(tmp_path, sample_data, preprocessing):
    folder = sample_data / "Task04_Hippocampus"
    name = min(path.name for path in (folder / "imagesTr").glob("h*.nii.gz"))
    case = {"image": str(folder / "imagesTr" / name), "label": str(folder / "labelsTr" / name)}
    (cached,) = cache_cases([case], preprocessing(), 3, tmp_path)
    direct = preprocessing()(case)
    image, label = (np.moveaxis(np.asarray(direct[key]), -1, 0) for key in ("image", "label"))
    assert_slices(cached, image, label[:, 0])


# --- when an entry is built ------------------------------------------------------------------------------------------


def state(cache):
    """Every file with slices of the cache, and which file it is: one that is made again is another."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in cache.glob("*.npy")}


def entries(cache):
    return sorted(p.stem for p in cache.glob("*.npy"))


def divide(x, by):
    return x / by


CALLS = []


def count(x):
    CALLS.append(x.shape)
    return x


def test_second_use_builds_nothing(tmp_path, preprocessing, write_case):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    used, equal = (preprocessing(extra=(Lambdad("image", count),)) for _ in range(2))
    CALLS.clear()
    cache_cases(cases, used, 3, cache)
    before = state(cache)
    assert len(before) == 2
    assert len(CALLS) == 2
    for again in (used, equal):
        cache_cases(cases[::-1], again, 3, cache)
        assert state(cache) == before
    assert len(CALLS) == 2


def test_number_of_classes_counts_though_the_preprocessing_has_its_own(tmp_path, preprocessing, write_case):
    case = write_case("a")
    for num_classes in (3, 4):
        (cached,) = cache_cases([case], preprocessing(4), num_classes, tmp_path / "cache")
        assert cached.classes.shape == (5, num_classes)


@pytest.mark.parametrize(
    "change",
    [
        {"lower": 2.0},
        {"extra": (Lambdad("image", lambda x: x * 1.0),)},
        {"extra": (Lambdad("image", partial(divide, by=2)),)},
        {"num_classes": 4},
    ],
    ids=["number", "lambda", "partial", "num_classes"],
)
def test_another_preprocessing_builds_entries_of_its_own_and_the_old_ones_stay(
    tmp_path, preprocessing, write_case, change
):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    cache_cases(cases, preprocessing(), 3, cache)
    before = state(cache)
    cache_cases(cases, preprocessing(**change), change.get("num_classes", 3), cache)
    both = state(cache)
    assert len(entries(cache)) == 4
    assert before.items() <= both.items()
    # two trainings with one cache: neither takes the other's entries away
    cache_cases(cases, preprocessing(), 3, cache)
    assert state(cache) == both


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: x * 2.0, lambda x: x * 3.0),
        (lambda x: x + 1, lambda x: x - 1),
        (partial(divide, by=2), partial(divide, by=4)),
        (partial(divide, by=np.float32(2)), partial(divide, by=np.float32(4))),
    ],
    ids=["constant", "operator", "partial", "numpy"],
)
def test_functions_with_the_same_name_are_told_apart(tmp_path, preprocessing, write_case, first, second):
    case, cache = write_case("a"), tmp_path / "cache"
    numbers = []
    for function in (first, second, second):
        cache_cases([case], preprocessing(extra=(Lambdad("image", function),)), 3, cache)
        numbers.append(len(entries(cache)))
    assert numbers == [1, 2, 2]


@pytest.mark.parametrize("key", ["image", "label"])
def test_changed_file_is_read_again(tmp_path, preprocessing, write_case, write_nifti, key):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    cache_cases(cases, preprocessing(), 3, cache)
    before = state(cache)
    if key == "label":  # of the same shape as its image
        content = np.random.RandomState(9).randint(0, 3, (5, 7, 6)).astype(np.uint8)
    else:
        content = np.random.RandomState(9).uniform(0, 1, (5, 7, 6)).astype(np.float32)
    write_nifti(Path(cases[0][key]), content)
    first, _ = cache_cases(cases, preprocessing(), 3, cache)
    images, labels = slices_of(first)
    if key == "label":
        assert np.array_equal(labels, content)
    else:
        assert np.abs(images[:, 0] - scaled(content)).max() <= STEP
    kept = {name for name in before if before[name] == state(cache).get(name)}
    assert len(kept) == 1  # that of the other case
    assert len(entries(cache)) == 2


def test_changed_slice_of_a_dicom_series_is_noticed(tmp_path, preprocessing):
    case = {"image": write_dicom(tmp_path / "series", VOLUME), "label": write_itk(tmp_path / "l.nii.gz", LABEL)}
    cache = tmp_path / "cache"
    cache_cases([case], preprocessing(), 3, cache)
    shutil.rmtree(tmp_path / "series")
    write_dicom(tmp_path / "series", VOLUME[:, ::-1])
    (cached,) = cache_cases([case], preprocessing(), 3, cache)
    assert_slices(cached, scaled(VOLUME[:, ::-1])[:, None], LABEL)


def test_two_series_of_one_folder_are_two_cases(tmp_path, preprocessing):
    folder, label = tmp_path / "study", write_itk(tmp_path / "l.nii.gz", LABEL)
    folder.mkdir()
    cases = []
    for number, slices in enumerate((VOLUME, VOLUME[:, ::-1])):
        write_dicom(tmp_path / "one", slices)
        for path in sorted((tmp_path / "one").iterdir()):
            uid = pydicom.dcmread(path).SeriesInstanceUID
            path.rename(folder / f"{number}_{path.name}")
        (tmp_path / "one").rmdir()
        cases.append({"image": str(folder / uid), "label": label})
    first, second = cache_cases(cases, preprocessing(), 3, tmp_path / "cache")
    assert_slices(first, scaled(VOLUME)[:, None], LABEL)
    assert_slices(second, scaled(VOLUME[:, ::-1])[:, None], LABEL)
    before = state(tmp_path / "cache")
    del first, second  # nobody uses them any more
    os.utime(next(folder.glob("0_*")), (0, 0))  # a file of the first
    cache_cases(cases, preprocessing(), 3, tmp_path / "cache")
    assert len(before.items() & state(tmp_path / "cache").items()) == 1
    assert len(entries(tmp_path / "cache")) == 2
    gone = [{"image": str(folder / "1.2.3"), "label": label}]
    with pytest.raises(ValueError, match=r"1 of 1 cases cannot be used:\n.*study/1\.2\.3: there is no such"):
        cache_cases(gone, preprocessing(), 3, tmp_path / "cache")


def test_one_image_with_the_labels_of_two_readers_is_two_cases(tmp_path, preprocessing, write_case, write_nifti):
    first = write_case("a")
    other = np.random.RandomState(3).randint(0, 3, (5, 7, 6)).astype(np.uint8)
    second = {**first, "label": write_nifti(tmp_path / "reader2" / "a.nii.gz", other)}
    for _ in range(2):
        cached = cache_cases([first, second], preprocessing(), 3, tmp_path / "cache")
        assert np.array_equal(slices_of(cached[1])[1], other)
        assert not np.array_equal(slices_of(cached[0])[1], other)


def records(cache):
    return sorted(p.stem for p in cache.glob("*-*-*.json"))


@pytest.mark.parametrize("lost", ["npy", "json"])
@pytest.mark.parametrize("index", [True, False])
def test_what_is_missing_is_made_again(tmp_path, preprocessing, write_case, lost, index):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    cache_cases(cases, preprocessing(), 3, cache)
    complete = state(cache)
    (cache / f"{entries(cache)[0]}.{lost}").unlink()
    if not index:
        next(cache.glob("*.index.json")).unlink()
    cached = cache_cases(cases, preprocessing(), 3, cache)
    assert set(entries(cache)) == set(records(cache)) == {Path(name).stem for name in complete}
    assert [slices_of(c)[0].shape for c in cached] == [(5, 1, 7, 6)] * 2
    assert set(complete.items()) & set(state(cache).items()) == {max(complete.items())}  # the other was not made again


def test_a_record_that_cannot_be_read_is_made_again(tmp_path, preprocessing, write_case):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    first = cache_cases(cases, preprocessing(), 3, cache)
    next(cache.glob("*.index.json")).write_text("{")
    (cache / f"{records(cache)[0]}.json").write_text("")
    again = cache_cases(cases, preprocessing(), 3, cache)
    assert [case.classes.tolist() for case in again] == [case.classes.tolist() for case in first]
    assert all((cache / f"{name}.json").read_text() for name in records(cache))


def test_a_damaged_file_is_named(tmp_path, preprocessing, write_case):
    cache = tmp_path / "cache"
    (cached,) = cache_cases([write_case("a")], preprocessing(), 3, cache)
    (file,) = cache.glob("*.npy")
    for content in (file.read_bytes()[:-1], b"", b"x" * 500):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file.name} is damaged .*; delete it"):
            cached.read(4)


def test_the_cache_is_listed_once_however_many_entries_are_built(tmp_path, preprocessing, write_case, monkeypatch):
    cases = [write_case(f"case{i}", i) for i in range(6)]
    listings = []

    def listing(real, path="."):
        listings.append(str(path))
        return real(path)

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, partial(listing, getattr(os, name)))
    cache_cases(cases, preprocessing(), 3, tmp_path / "cache")
    assert listings.count(str(tmp_path / "cache")) == 1


def age(path, days):
    then = path.stat().st_mtime - days * 24 * 3600
    os.utime(path, (then, then))


def test_what_no_run_uses_goes_after_a_month(tmp_path, preprocessing, write_case):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    cache_cases(cases, preprocessing(), 3, cache)
    used = set(entries(cache))
    cache_cases(cases[:1], preprocessing(lower=2.0), 3, cache)
    (other,) = set(entries(cache)) - used
    (cache / "mine.txt").write_text("no entry of the cache")
    for path in cache.glob("*.*"):
        age(path, 29)
    cache_cases(cases, preprocessing(), 3, cache)
    assert set(entries(cache)) == {*used, other}
    for path in cache.glob("*.*"):  # those in use were touched by the run before
        age(path, 2)
    cache_cases(cases, preprocessing(), 3, cache)
    assert set(entries(cache)) == used
    assert (cache / "mine.txt").is_file()


def test_what_earlier_versions_left_goes(tmp_path, preprocessing, write_case):
    entry = "-".join(["0123456789abcdef"] * 3)
    for name in (".building-old", ".building-new", entry):  # a folder an entry
        (tmp_path / "cache" / name / "entry").mkdir(parents=True)
    for name in (".building-old", entry):
        age(tmp_path / "cache" / name, 2)
    cache_cases([write_case("a")], preprocessing(), 3, tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.name != ".runs"] == [".building-new"]


@pytest.mark.parametrize(("header", "voxels"), [("v.mhd", "v.raw"), ("v.nhdr", "v.raw")])
def test_changed_voxels_beside_a_header_are_noticed(tmp_path, preprocessing, header, voxels):
    (tmp_path / "i").mkdir()
    case = {"image": write_itk(tmp_path / "i" / header, VOLUME), "label": write_itk(tmp_path / "l.nii.gz", LABEL)}
    cache_cases([case], preprocessing(), 3, tmp_path / "cache")
    (tmp_path / "i" / voxels).write_bytes(np.ascontiguousarray(VOLUME[:, ::-1]).tobytes())
    (cached,) = cache_cases([case], preprocessing(), 3, tmp_path / "cache")
    assert_slices(cached, scaled(VOLUME[:, ::-1])[:, None], LABEL)
    assert len(entries(tmp_path / "cache")) == 1


def test_checked_cases_leave_a_record_without_slices(tmp_path, preprocessing, write_case):
    cases, cache = [write_case("a", 1), write_case("b", 2)], tmp_path / "cache"
    used = preprocessing(extra=(Lambdad("image", count),))
    CALLS.clear()
    for _ in range(2):
        folders, failures = prepare_cases(cases[:1], cases[1:], used, 3, cache)
        assert (len(folders), failures) == (1, [])
    assert len(CALLS) == 2
    assert len(state(cache)) == 1  # slices of the first
    assert len(records(cache)) == 2
    prepare_cases(cases, (), used, 3, cache)  # the second is trained on, too: now with slices
    prepare_cases((), cases, used, 3, cache)  # and slices are a record as well
    assert len(CALLS) == 3


def test_workers_build_the_same_as_this_process(tmp_path, preprocessing, write_case):
    cases = [write_case("a", 1), write_case("b", 2), {**write_case("c", 3), "label": write_case("d", 4)["image"]}]
    results = []
    for workers in (0, 2):
        cache = tmp_path / f"cache{workers}"
        with pytest.raises(ValueError, match=r"1 of 3 cases cannot be used:\n.*d\.nii\.gz: values such as"):
            cache_cases(cases, preprocessing(), 3, cache, num_workers=workers)
        results.append({str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*.npy")})
    assert len(results[0]) == 2
    assert results[0] == results[1]


def named_by_process(x):
    Path(os.environ["MEDSAGA_TEST_PIDS"], str(os.getpid())).touch()
    return x


@pytest.mark.parametrize("sendable", [True, False])
def test_what_would_take_long_is_given_to_processes(tmp_path, preprocessing, write_case, monkeypatch, sendable):
    monkeypatch.setattr(cache_build, "_LONG", -1)  # seconds: anything takes long
    (tmp_path / "pids").mkdir()
    monkeypatch.setenv("MEDSAGA_TEST_PIDS", str(tmp_path / "pids"))
    function = named_by_process if sendable else lambda x: named_by_process(x)
    cases = [write_case(name, seed) for seed, name in enumerate("abc")]
    cached = cache_cases(cases, preprocessing(extra=(Lambdad("image", function),)), 3, tmp_path / "cache")
    assert [slices_of(case)[0].shape for case in cached] == [(5, 1, 7, 6)] * 3
    pids = {path.name for path in (tmp_path / "pids").iterdir()}
    assert str(os.getpid()) in pids
    # a function without a name cannot be sent to another process
    assert (len(pids) > 1) == (sendable and processes_for(0) > 1)


def test_sequences_are_channels_of_each_slice(tmp_path, write_nifti):
    """Two files of (slice, row, column), each scaled by its own percentiles."""
    stored = np.random.RandomState(3).uniform(-300, 900, (2, 5, 7, 6)).astype(np.float32)
    stored[1] *= 10
    files = [write_nifti(tmp_path / f"case_000{n}.nii.gz", values) for n, values in enumerate(stored)]
    label = np.random.RandomState(4).randint(0, 3, stored.shape[1:]).astype(np.uint8)
    case = {"image": files, "label": write_nifti(tmp_path / "label.nii.gz", label)}
    keys = ["image", "label"]
    preprocessing = Compose(
        [
            ReadImaged(keys),
            OrientSlicesd(keys, "axial"),
            CheckCased(3, num_channels=2),
            ScaleIntensityRangePercentilesd("image", 0, 100, 0, 1, clip=True, channel_wise=True),
        ]
    )
    (cached,) = cache_cases([case], preprocessing, 3, tmp_path / "cache")
    low, high = stored.min(axis=(1, 2, 3))[:, None, None], stored.max(axis=(1, 2, 3))[:, None, None]
    for index in range(5):
        item = cached.read(index)
        expected = (stored[:, index] - low) / (high - low)
        np.testing.assert_allclose(item["image"].numpy(), expected, atol=1e-3)
        np.testing.assert_array_equal(item["label"][0].numpy(), label[index])


# --- cases that cannot be used ---------------------------------------------------------------------------------------


def nifti(key, change):
    """Write the file of a case again, with its content changed."""

    def damage(case):
        file = nib.load(case[key])
        content = change(np.array(file.dataobj))
        nib.save(nib.Nifti1Image(content, file.affine), case[key])

    return damage


def set_one(value):
    def change(content):
        content[1, 2, 3] = value
        return content

    return change


def truncate(key):
    def damage(case):  # the header is whole, the voxels are not
        nib.save(nib.Nifti1Image(RANDOM.uniform(size=(20, 20, 20)), np.eye(4)), case[key])
        content = Path(case[key]).read_bytes()
        Path(case[key]).write_bytes(content[: len(content) // 2])

    return damage


def text(case):
    Path(case["image"]).write_text("not an image")


DAMAGES = {
    "label_shape": (
        nifti("label", lambda x: x[:, :-1]),
        r"labels/bad\.nii\.gz: the label has shape .*images/bad\.nii\.gz",
    ),
    "label_value": (nifti("label", set_one(7)), r"labels/bad\.nii\.gz: label values 7.*outside the 3 classes"),
    "truncated_image": (truncate("image"), r"images/bad\.nii\.gz: .*truncated"),
    "truncated_label": (truncate("label"), r"labels/bad\.nii\.gz: .*truncated"),
    "text": (text, r"images/bad\.nii\.gz"),
    "nan": (nifti("image", set_one(np.nan)), r"images/bad\.nii\.gz: 1 of 210 values are NaN"),
    "infinite": (nifti("image", set_one(np.inf)), r"images/bad\.nii\.gz: 1 of 210 values are NaN or infinite"),
    "four_d": (
        nifti("image", lambda x: np.stack([x, x], -1)),
        r"images/bad\.nii\.gz: it is a 4-D image with 2 volumes",
    ),
    "constant": (nifti("image", lambda x: 0 * x + 3), r"images/bad\.nii\.gz: every value is 3"),
    "one_voxel_differs": (
        nifti("image", lambda x: set_one(1e6)(0 * x)),
        r"images/bad\.nii\.gz: intensities are from 0 to",
    ),
}


@pytest.mark.filterwarnings("ignore:Divide by zero")
@pytest.mark.parametrize("name", DAMAGES)
def test_bad_case_is_reported_with_its_file_and_reason(tmp_path, preprocessing, write_case, name):
    damage, message = DAMAGES[name]
    case = write_case("bad")
    damage(case)
    with pytest.raises(ValueError, match=message):
        cache_cases([case], preprocessing(), 3, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_error_without_a_text_still_names_the_case(tmp_path, preprocessing, write_case):
    def fail(_):
        raise AssertionError

    with pytest.raises(
        ValueError, match=r"images/a\.nii\.gz: cannot be read, or its label .*labels/a\.nii\.gz: AssertionError"
    ):
        cache_cases([write_case("a")], preprocessing(extra=(Lambdad("image", fail),)), 3, tmp_path / "cache")


def test_bad_cases_are_reported_together_and_the_good_ones_cached(tmp_path, preprocessing, write_case):
    cases = [write_case(name, seed) for seed, name in enumerate(("good", "short", "wrong"))]
    truncate("image")(cases[1])
    nifti("label", set_one(7))(cases[2])
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="2 of 3 cases cannot be used") as caught:
        cache_cases(cases, preprocessing(), 3, cache)
    assert "short.nii.gz" in str(caught.value)
    assert "wrong.nii.gz" in str(caught.value)
    assert "good.nii.gz" not in str(caught.value)
    before = state(cache)
    assert len(before) == 1
    cache_cases(cases[:1], preprocessing(), 3, cache)
    assert state(cache) == before


@pytest.mark.parametrize("key", ["image", "label"])
def test_missing_file_is_named_and_the_others_are_cached(tmp_path, preprocessing, write_case, key):
    case = {**write_case("a"), key: str(tmp_path / "gone.nii.gz")}
    with pytest.raises(ValueError, match=r"1 of 2 cases cannot be used:\n.*/gone\.nii\.gz: there is no such file"):
        cache_cases([case, write_case("good")], preprocessing(), 3, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 1


def end_the_process(label):
    """As the kernel does with a process that takes too much memory."""
    if label.max() > 2:
        os._exit(9)
    return label


def test_a_case_whose_reading_ends_the_process_is_named(tmp_path, preprocessing, write_case):
    cases = [write_case(name, seed) for seed, name in enumerate("ab")]
    nifti("label", set_one(7))(cases[1])
    used = preprocessing(extra=(Lambdad("label", end_the_process),))
    with pytest.raises(ValueError, match="1 of 2 cases cannot be used") as caught:
        cache_cases(cases, used, 3, tmp_path / "cache", num_workers=2)
    assert f"{cases[1]['image']}: reading it ended the process" in str(caught.value)
    assert len(entries(tmp_path / "cache")) == 1
