from __future__ import annotations

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, ScaleIntensityRangePercentilesd
from torch.utils.data import DataLoader

from medsaga.data import EpochSampler, SliceDataset, add_test_patients, for_unlabelled, training_record
from medsaga.transforms import FitSquared, OrientSlicesd, ReadImaged, cuts

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(phantoms, preprocessing, cache):
    """Makes a dataset of the phantoms; all share a cache."""

    def make(**options):
        return SliceDataset(phantoms, preprocessing(), 3, cache, **options)

    return make


def augmentation(size=16):
    return Compose(
        [
            FitSquared(["image", "label"], size),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=1),
            RandGaussianNoised("image", prob=0.8, std=0.1),
        ]
    )


def equal(a, b):
    return torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])


def slices_of(dataset):
    return list(map(tuple, dataset.slices.tolist()))


# --- which slices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_classes", [0, 1, 2])
def test_takes_the_slices_with_enough_classes(make, phantoms, min_classes):
    labels = [np.asarray(nib.load(case["label"]).dataobj) for case in phantoms]
    expected = [
        (case, z)
        for case, label in enumerate(labels)
        for z in range(label.shape[2])
        if len(set(np.unique(label[:, :, z])) - {0}) >= min_classes
    ]
    assert slices_of(make(min_classes=min_classes)) == expected
    assert 0 < len(expected) <= sum(label.shape[2] for label in labels)


@pytest.fixture
def sagittal(write_nifti, tmp_path):
    """A case that was acquired in sagittal slices, from right to left, near enough to each other to cut it across."""
    random = np.random.RandomState(5)
    acquired = np.array([[0.0, 0, 1.6, 3], [1, 0, 0, -4], [0, -1, 0, 2], [0, 0, 0, 1]])
    return {
        "image": write_nifti(tmp_path / "image.nii.gz", random.rand(9, 12, 10).astype(np.float32), acquired),
        "label": write_nifti(tmp_path / "label.nii.gz", random.randint(0, 3, (9, 12, 10)).astype(np.uint8), acquired),
    }


@pytest.mark.parametrize("num_slices", [None, 6])
def test_all_planes_are_labelled_where_they_cross_the_training_slices(phantoms, sagittal, tmp_path, num_slices):
    keys = ["image", "label"]
    prepare = Compose(
        [ReadImaged(keys), OrientSlicesd(keys, "auto"), ScaleIntensityRangePercentilesd("image", 0, 100, 0, 1)]
    )
    cases = [phantoms[0], sagittal]
    dataset = SliceDataset(cases, prepare, 3, tmp_path / "cache", plane="all", num_slices=num_slices, seed=3)
    found = []  # plane, position and label of each slice of each plane, by the image's bytes
    for number, case in enumerate(cases):
        prepared = prepare({key: case[key] for key in keys})
        known = prepared["label"].clone()
        drawn = [position for own, position in slices_of(dataset) if own == number]
        known[..., [k for k in range(known.shape[-1]) if k not in drawn]] = 255
        for cut in cuts(tuple(known.shape[1:]), prepared["image"].affine):
            turned = OrientSlicesd(keys, cut.plane)({"image": prepared["image"], "label": known})
            label = turned["label"].as_tensor().to(torch.uint8)
            image = turned["image"].as_tensor().half().float()
            found += [((number, cut.plane, i), image[..., i], label[..., i]) for i in range(image.shape[-1])]
    assert len({(number, plane) for (number, plane, _), _, _ in found}) == 6
    seen = []
    for epoch in range(60 if num_slices else 12):
        for index, (number, position) in enumerate(slices_of(dataset)):
            item = dataset[epoch, index]
            (place, label), *others = [
                (place, label)
                for place, image, label in found
                if image.shape == item["image"].shape and torch.equal(image, item["image"])
            ]
            assert not others and place[0] == number and torch.equal(label, item["label"])
            own = place[1] == ("sagittal" if number else "axial")
            assert place[2] == position if own else (label != 255).any()
            seen.append(place[:2])
    # each plane equally often
    for number in (0, 1):
        shares = [seen.count((number, plane)) for plane in ("axial", "coronal", "sagittal")]
        assert min(shares) > 0.75 * sum(shares) / 3
    record = training_record(cases, [], dataset, ["background", "first", "second"], seed=3)
    assert sum(len(entry["slices"]) for entry in record["slices"]) == len(dataset)
    assert {entry["plane"] for entry in record["slices"]} == {"axial", "sagittal"}


def test_labels_of_some_slices_are_lines_in_other_planes(phantoms, preprocessing, tmp_path):
    case = {**phantoms[0], "labelled_slices": [1, 3]}
    dataset = SliceDataset([case], preprocessing(), 3, tmp_path / "cache", plane="all")
    assert slices_of(dataset) == [(0, 1), (0, 3)]
    labelled = {int((dataset[epoch, 0]["label"] != 255).any(dim=2).sum()) for epoch in range(20)}
    rows = dataset[0, 0]["label"].shape[1]
    assert labelled <= {2, rows, *range(3, 20)} and 2 in labelled, "lines of two slices, or a whole one"


def test_unlabelled_slices_are_of_all_planes_too(phantoms, preprocessing, tmp_path):
    cases = [{"image": case["image"]} for case in phantoms[:1]]
    dataset = SliceDataset(cases, for_unlabelled(preprocessing()), 3, tmp_path / "cache", plane="all")
    shapes = {tuple(dataset[epoch, 0]["image"].shape[1:]) for epoch in range(20)}
    assert len(shapes) > 1 and all(set(dataset[epoch, 0]) == {"image"} for epoch in range(3))


def test_a_2d_image_among_volumes_is_one_slice(phantoms, write_nifti, preprocessing, tmp_path):
    paths = {}
    for name, kind in (("image", np.float32), ("label", np.uint8)):
        paths[name] = str(tmp_path / f"{name}.nii.gz")
        values = np.random.RandomState(0).randint(0, 3, (12, 10)).astype(kind)
        nib.save(nib.Nifti1Image(values, np.eye(4)), paths[name])
    dataset = SliceDataset([paths, phantoms[0]], preprocessing(), 3, tmp_path / "cache", plane="all")
    assert [number for number, _ in slices_of(dataset)].count(0) == 1
    assert all(dataset[epoch, 0]["image"].shape == (1, 10, 12) for epoch in range(5))


def test_planes_with_long_pixels_give_no_slice(write_nifti, preprocessing, tmp_path):
    values = np.random.RandomState(0).rand(10, 12, 14).astype(np.float32)
    thick = np.diag([-1.0, -1.0, 5.0, 1.0])
    case = {
        "image": write_nifti(tmp_path / "image.nii.gz", values, thick),
        "label": write_nifti(tmp_path / "label.nii.gz", (values > 0.5).astype(np.uint8), thick),
    }
    dataset = SliceDataset([case], preprocessing(2), 2, tmp_path / "cache", plane="all", class_names=["no", "yes"])
    assert slices_of(dataset) == [(0, z) for z in range(10)] and dataset.empty_labels() == []


def test_slices_of_a_smaller_number_are_among_those_of_a_larger(make):
    few, more, other = (slices_of(make(num_slices=n, seed=seed)) for n, seed in ((5, 1), (12, 1), (12, 2)))
    assert len(few) == len(set(few)) == 5
    assert len(more) == len(set(more)) == 12
    assert set(few) < set(more)
    assert set(more) != set(other)


def test_few_slices_are_drawn_from_all_cases(make):
    assert {case for case, _ in make(num_slices=15).slices} == {0, 1, 2}


def test_fewer_slices_than_asked_for_are_all_taken_with_a_warning(make, caplog):
    everything = slices_of(make())
    with caplog.at_level(logging.WARNING):
        assert sorted(slices_of(make(num_slices=len(everything)))) == everything
        assert "num_slices" not in caplog.text
        assert sorted(slices_of(make(num_slices=1000))) == everything
    assert f"num_slices=1000, but the 3 training cases have {len(everything)} slices" in caplog.text


def test_no_case_and_no_slice_are_errors(make, preprocessing, tmp_path):
    with pytest.raises(ValueError, match="the list of images and labels is empty"):
        SliceDataset([], preprocessing(), 3, tmp_path)
    with pytest.raises(ValueError, match="None of the slices of 3 cases shows 3 or more classes"):
        make(min_classes=3)


# --- what a slice looks like -----------------------------------------------------------------------------------------


def test_item_without_transform_is_the_cached_slice(make):
    dataset = make()
    case, position = dataset.slices[7]
    item = dataset[7]
    assert equal(item, dataset.cases[case].read(position))
    assert equal(item, dataset[5, 7])
    assert item["image"].dtype == torch.float32
    assert item["label"].dtype == torch.uint8
    assert item["image"].shape == item["label"].shape
    assert item["image"].min() >= 0
    assert 0.5 < item["image"].max() <= 1


def test_epoch_and_index_decide_the_augmentation_and_nothing_else(make):
    dataset, again = make(transform=augmentation()), make(transform=augmentation())
    forward = [dataset[1, i] for i in range(len(dataset))]
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 - what a library may do between two items
    backward = [again[1, i] for i in reversed(range(len(dataset)))][::-1]
    assert all(equal(a, b) for a, b in zip(forward, backward))
    later = [dataset[2, i] for i in range(len(dataset))]
    assert sum(equal(a, b) for a, b in zip(forward, later)) < len(dataset) / 2


def test_augmentation_follows_the_seed_and_differs_between_items(make):
    first, second = make(transform=augmentation(), seed=0), make(transform=augmentation(), seed=1)
    assert not all(equal(first[1, i], second[1, i]) for i in range(5))
    plain = make(transform=Compose([FitSquared(["image", "label"], 16)]))
    sums = [float((first[1, i]["image"] - plain[1, i]["image"]).sum()) for i in range(len(first))]
    assert len(set(sums)) > len(sums) / 2


def test_plain_index_is_epoch_zero(make):
    dataset = make(transform=augmentation())
    assert equal(dataset[4], dataset[0, 4])


def test_workers_give_the_batches_of_one_process(make):
    dataset = make(transform=augmentation(), num_slices=10)
    epochs = []
    for workers in (0, 2):
        sampler = EpochSampler(dataset, seed=3)
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)
        sampler.set_epoch(2)
        epochs.append(list(loader))
    assert [len(batch["image"]) for batch in epochs[0]] == [4, 4, 2]
    assert all(equal(a, b) for a, b in zip(*epochs))


def test_a_slice_stays_with_its_label_through_the_augmentation(make):
    """Phantoms are brighter where they are labelled, flipped or not."""
    dataset = make(min_classes=2, transform=augmentation())
    differences = []
    for i in range(len(dataset)):
        item = dataset[1, i]
        inside, padding = item["label"] > 0, (item["image"] == 0) & (item["label"] == 0)
        differences.append(float(item["image"][inside].mean() - item["image"][~inside & ~padding].mean()))
    assert np.mean(differences) > 0.1


# --- what the slices do not show -------------------------------------------------------------------------------------

NAMES = ["background", "anterior", "posterior", "third"]


@pytest.fixture
def with_few_classes(write_nifti, tmp_path):
    """Two cases of 4 slices: class 1 on slices 1 and 2 of the first, class 2 on slice 3; the second shows nothing."""
    labels = np.zeros((2, 4, 6, 6), np.uint8)
    labels[0, 1:3, 2:4, 2:4] = 1
    labels[0, 3, 2:4, 2:4] = 2
    image = np.arange(4 * 36, dtype=np.float32).reshape(4, 6, 6)
    return [
        {
            "image": write_nifti(tmp_path / "images" / f"{name}.nii.gz", image),
            "label": write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label),
            "patient": name,
        }
        for name, label in zip("ab", labels)
    ]


def test_classes_that_no_slice_shows_and_empty_labels_are_warned_of(with_few_classes, preprocessing, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = SliceDataset(with_few_classes, preprocessing(4), 4, tmp_path / "cache", class_names=NAMES)
    assert dataset.unseen_classes() == [3] and dataset.empty_labels() == [with_few_classes[1]]
    assert dataset.shown_slices() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert "No training slice shows: third." in caplog.text
    assert f"1 of 2 training labels show background only: {with_few_classes[1]['label']}." in caplog.text


def test_a_class_counts_only_where_its_slice_is_drawn(with_few_classes, preprocessing, tmp_path):
    for seed in range(5):
        dataset = SliceDataset(with_few_classes, preprocessing(4), 4, tmp_path, num_slices=2, min_classes=1, seed=seed)
        drawn = {position for _, position in dataset.slices}
        missing = ([] if drawn & {1, 2} else [1]) + ([] if 3 in drawn else [2]) + [3]
        assert dataset.unseen_classes() == missing


def test_a_record_of_a_training_is_what_was_drawn(with_few_classes, preprocessing, tmp_path):
    dataset = SliceDataset(with_few_classes, preprocessing(4), 4, tmp_path, num_slices=9, min_classes=1)
    parts = {"train": with_few_classes, "validation": [], "test": [{"image": "c.nii.gz", "patient": "c"}]}
    record = training_record(parts["train"], parts["validation"], dataset, NAMES, seed=3)
    add_test_patients(record, parts["test"])
    assert record == json.loads(json.dumps(record))
    assert record["slices"] == [{"patient": "a", "case": "a", "slices": [1, 2, 3]}]
    assert (record["train"], record["validation"], record["test"]) == (["a", "b"], [], ["c"])
    assert (record["unseen_classes"], record["empty_labels"], record["seed"]) == (["third"], ["b"], 3)
    assert record["labelled"] and len(record["warnings"]) == 1


def test_images_without_labels_miss_no_class(with_few_classes, preprocessing, tmp_path, caplog):
    cases = [{"image": case["image"]} for case in with_few_classes]
    unlabelled = for_unlabelled(preprocessing(4))
    dataset = SliceDataset(cases, unlabelled, 4, tmp_path / "cache", class_names=NAMES)
    assert dataset.unseen_classes() == dataset.empty_labels() == [] and not dataset.labelled
    assert "No training slice" not in caplog.text


def test_slices_without_a_label_are_not_taken(write_nifti, preprocessing, tmp_path):
    random = np.random.RandomState(0)
    label = random.randint(0, 3, (6, 9, 8)).astype(np.uint8)
    label[[0, 2, 5]] = 255
    case = {
        "image": write_nifti(tmp_path / "image.nii.gz", random.rand(6, 9, 8).astype(np.float32)),
        "label": write_nifti(tmp_path / "label.nii.gz", label),
    }
    dataset = SliceDataset([case], preprocessing(), 3, tmp_path / "cache")
    assert slices_of(dataset) == [(0, 1), (0, 3), (0, 4)]
    assert torch.equal(dataset[1]["label"][0], torch.tensor(label[3]))


def test_slices_that_a_case_names_are_taken(phantoms, preprocessing, tmp_path):
    whole = SliceDataset(phantoms[:1], preprocessing(), 3, tmp_path / "cache")
    case = {**phantoms[0], "labelled_slices": [1, 3]}
    some = SliceDataset([case], preprocessing(), 3, tmp_path / "cache")
    # slices run to superior, as in the file
    assert slices_of(some) == [(0, 1), (0, 3)]
    assert equal(some[0], whole[1]) and equal(some[1], whole[3])


@pytest.mark.parametrize("slices", [[], [99], [-1], [1.5]])
def test_slices_that_there_are_not_are_named(phantoms, preprocessing, tmp_path, slices):
    with pytest.raises(ValueError, match=r"labelled_slices is .*; it must be numbers of slices"):
        SliceDataset([{**phantoms[0], "labelled_slices": slices}], preprocessing(), 3, tmp_path / "cache")
