"""Patches of volumes around labelled slices."""

import pytest
import torch
from monai.transforms import Compose, RandFlipd

from medsaga.data import SliceDataset, VolumePatches


@pytest.fixture
def made(phantoms, preprocessing, tmp_path):
    def make(kind=VolumePatches, **options):
        depth = {"depth": 6} if kind is VolumePatches else {}
        return kind(phantoms[:3], preprocessing(), 3, tmp_path / "cache", **{**depth, **options})

    return make


def test_a_patch_shows_its_slice_and_no_other_label(made):
    dataset, slices = made(num_slices=5), made(SliceDataset, num_slices=5)
    assert len(dataset) == len(slices) == 5
    assert (dataset.slices == slices.slices).all(), "the slices that a 2-D network learns from"
    for index in range(5):
        patch, alone = dataset[3, index], slices[3, index]
        depth = patch["label"].shape[-1]
        assert depth == 6 and patch["image"].shape[1:] == patch["label"].shape[1:]
        known = (patch["label"] != 255).flatten(0, 2).any(dim=0)
        case = dataset.slices[index, 0]
        assert 1 <= known.sum() <= (dataset.slices[:, 0] == case).sum()
        assert any(
            torch.equal(patch["label"][..., i], alone["label"]) and torch.equal(patch["image"][..., i], alone["image"])
            for i in range(depth)
        )
        foreground = (patch["label"] > 0) & (patch["label"] < 255)
        assert torch.equal(patch["foreground"].bool(), foreground)


def test_all_slices_are_labelled_where_all_are_drawn(made):
    dataset = made()
    assert all((dataset[0, index]["label"] != 255).all() for index in range(0, len(dataset), 7))


def test_where_it_lies_depends_on_seed_epoch_and_index_alone(made):
    flips = Compose([RandFlipd(["image", "label"], prob=0.5)])
    dataset, again = made(transform=flips), made(transform=flips)
    images = [dataset[epoch, 4]["image"] for epoch in range(8)]
    for epoch in reversed(range(8)):
        assert torch.equal(again[epoch, 4]["image"], images[epoch])
    assert len({(*image.shape, float(image.sum())) for image in images}) > 1


def test_a_volume_of_fewer_slices_is_taken_whole(made):
    assert made(depth=1000)[0, 0]["image"].shape[-1] == len(made(depth=1000).cases[0].classes)


def test_all_planes_are_refused(made):
    with pytest.raises(ValueError, match="sees all planes at once"):
        made(plane="all")
