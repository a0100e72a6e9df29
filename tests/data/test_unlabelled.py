from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, MapLabelValued, RandAffined, RandFlipd, SomeOf

from medsaga.data import SliceDataset, for_unlabelled, unlabelled_datalist


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(datalist: list[dict], folder: Path) -> list[str]:
    assert all(case.keys() == {"image"} for case in datalist)
    return [str(Path(case["image"]).relative_to(folder)) for case in datalist]


def test_images_are_found_wherever_they_are_and_nothing_else(tmp_path):
    images = ["a.nii.gz", "b/c.NRRD", "b/d/1.2.840.png", "b/d/e.jpg", "b/d/f.jpeg", "g.mha", "h.nii"]
    touch(tmp_path, *images, "readme.txt", "b/dataset.json", "._a.nii.gz", ".cache/z.nii.gz", "empty.gz")
    found = names(unlabelled_datalist(tmp_path), tmp_path)
    assert sorted(found) == images
    assert found == names(unlabelled_datalist(str(tmp_path)), tmp_path)  # the same order each time


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder of images at .*nowhere\. .*--dataset_dir"):
        unlabelled_datalist(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt", "sub/.hidden.nii.gz")
    with pytest.raises(FileNotFoundError, match=rf"No image in {tmp_path} .*\.nii\.gz.*DICOM"):
        unlabelled_datalist(tmp_path)


def test_slices_are_those_of_the_same_image_with_its_label(tmp_path, preprocessing, write_case):
    cases = [write_case("a", 1), write_case("b", 2)]
    labelled = SliceDataset(cases, preprocessing(), 3, tmp_path / "cache")
    datalist = unlabelled_datalist(tmp_path / "images")
    before = sorted(p.name for p in (tmp_path / "cache").glob("*.npy"))
    bare = SliceDataset(datalist, for_unlabelled(preprocessing()), 3, tmp_path / "cache")
    assert len(bare) == len(labelled) == 10
    for index in range(10):
        assert bare[index].keys() == {"image"}
        assert torch.equal(bare[index]["image"], labelled[index]["image"])
    # entries of their own: neither set replaces the other's
    after = sorted(p.name for p in (tmp_path / "cache").glob("*.npy"))
    assert set(before) < set(after)
    assert len(after) == 4
    again = SliceDataset(cases, preprocessing(), 3, tmp_path / "cache")
    assert again[0].keys() == {"image", "label"}
    with pytest.raises(ValueError, match="None of the slices of 2 cases shows 1 or more classes"):
        SliceDataset(datalist, for_unlabelled(preprocessing()), 3, tmp_path / "cache", min_classes=1)


def test_images_that_cannot_be_read_are_named(tmp_path, preprocessing, write_case):
    write_case("a")
    (tmp_path / "images" / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 2 cases cannot be used:\n.*broken\.nii\.gz") as caught:
        SliceDataset(unlabelled_datalist(tmp_path / "images"), for_unlabelled(preprocessing()), 3, tmp_path / "cache")
    assert "label" not in str(caught.value)


def test_augmentation_of_an_image_does_not_depend_on_its_label():
    keys = ("image", "label")
    flips = RandFlipd(keys, prob=0.5, spatial_axis=1)
    moves = RandAffined(keys, prob=0.7, rotate_range=0.3, translate_range=[2, 2], mode=["bilinear", "nearest"])
    both = Compose([SomeOf([flips], num_transforms=1), moves, MapLabelValued("label", [1], [1])])
    alone = for_unlabelled(both)
    item = {"image": torch.from_numpy(np.random.RandomState(0).rand(1, 9, 9)), "label": torch.ones(1, 9, 9)}
    for seed in range(5):
        results = []
        for transform, data in ((both, item), (alone, {"image": item["image"]})):
            transform.set_random_state(seed)
            results.append(transform(data))
        assert results[1].keys() == {"image"}
        assert torch.equal(*(torch.as_tensor(result["image"]) for result in results))


def test_the_original_still_asks_for_a_label(write_case):
    original = Compose([LoadImaged(("image", "label"))])
    image = {"image": write_case("a")["image"]}
    assert for_unlabelled(original)(image).keys() == {"image"}
    with pytest.raises(RuntimeError) as caught:
        original(image)
    assert "label" in str(caught.value.__cause__)
