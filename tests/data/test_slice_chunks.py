"""Chunks of neighbouring slices: which they are, and that their slices are augmented alike."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandAffined, RandFlipd, ScaleIntensityRanged

from medsaga.data.slice_chunks import SliceChunks
from medsaga.transforms import FitSquared

PREPROCESSING = Compose(
    [
        LoadImaged(["image", "label"]),
        EnsureChannelFirstd(["image", "label"]),
        ScaleIntensityRanged("image", 0, 20, 0, 1),
    ]
)


def write(folder, name, slices):
    """A volume whose slice z has the value z, and class 1 in the last slice only."""
    image = np.zeros((12, 10, slices), np.float32) + np.arange(slices)
    label = np.zeros((12, 10, slices), np.uint8)
    label[3:6, 2:5, -1] = 1
    case = {}
    for key, array in (("image", image), ("label", label)):
        case[key] = str(folder / f"{name}_{key}.nii")
        nib.save(nib.Nifti1Image(array, np.eye(4)), case[key])
    return case


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    return [write(folder, "a", 10), write(folder, "b", 4)], folder / "cache"


def numbers(item):
    """The slices' numbers."""
    return (item["image"][:, 0].mean(dim=(1, 2)) * 20).round().int().tolist()


def test_each_volume_is_cut_from_its_first_slice(volumes):
    data, cache = volumes
    chunks = SliceChunks(data, PREPROCESSING, 2, cache, depth=4)
    found = [numbers(chunks[i]) for i in range(len(chunks))]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9], [0, 1, 2, 3]]
    item = chunks[2]
    assert item["image"].shape == (4, 1, 12, 10) and item["label"].shape == (4, 1, 12, 10)
    assert item["label"].flatten(1).any(dim=1).tolist() == [False, False, False, True]


def test_chunks_with_foreground(volumes):
    data, cache = volumes
    chunks = SliceChunks(data, PREPROCESSING, 2, cache, depth=4, min_classes=1)
    assert [numbers(chunks[i])[-1] for i in range(len(chunks))] == [9, 3]


def test_what_chunks_show_is_said_of_all_their_slices(volumes, caplog):
    data, cache = volumes
    chunks = SliceChunks(
        data, PREPROCESSING, 3, cache, depth=4, num_slices=100, min_classes=1, class_names=["none", "a", "b"]
    )
    assert chunks.shown_slices() == [[6, 7, 8, 9], [0, 1, 2, 3]]
    assert chunks.unseen_classes() == [2] and chunks.empty_labels() == [] and chunks.labelled
    assert "No training slice shows: b." in caplog.text
    assert chunks.shortages == [
        "num_slices=100 makes 25 chunks, but the 2 training cases have 2: all of them are taken."
    ]


def test_the_number_is_that_of_slices(volumes):
    data, cache = volumes
    assert len(SliceChunks(data, PREPROCESSING, 2, cache, depth=4, num_slices=11)) == 2
    by_seed = [SliceChunks(data, PREPROCESSING, 2, cache, depth=4, num_slices=4, seed=seed) for seed in range(9)]
    drawn = {tuple(numbers(chunks[0])) for chunks in by_seed}
    assert len(drawn) > 1


def test_slices_of_a_chunk_are_augmented_alike(volumes):
    data, cache = volumes
    keys = ["image", "label"]
    transform = Compose(
        [
            FitSquared(keys, 16),
            RandFlipd(keys, 0.5, 1),
            RandAffined(keys, prob=1.0, rotate_range=0.5, mode=["bilinear", "nearest"]),
        ]
    )
    chunks = SliceChunks(data, PREPROCESSING, 2, cache, depth=4, transform=transform, seed=3)
    item = chunks[(1, 0)]
    assert item["image"].shape == (4, 1, 16, 16)
    scaled = item["image"][1:] / torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(scaled[1], scaled[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled[2], scaled[0], rtol=0, atol=1e-4)
    assert torch.equal(chunks[(1, 0)]["image"], item["image"]), "an item is a function of seed, epoch and index"
    assert any(not torch.equal(chunks[(epoch, 0)]["image"], item["image"]) for epoch in range(2, 6))


def test_a_volume_of_too_few_slices_is_named(volumes):
    data, cache = volumes
    with pytest.raises(ValueError, match=r"b_image.nii has 4 slices, but a chunk has depth=5"):
        SliceChunks(data, PREPROCESSING, 2, cache, depth=5)
