from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from medsaga.metrics import segmentation_metrics


def label_map(shape, seed, classes=3):
    """Smooth random regions of every class."""
    random = np.random.RandomState(seed)
    return np.stack([gaussian_filter(random.normal(size=shape), 2) for _ in range(classes)]).argmax(axis=0)


def dice(a, b):
    total = a.sum() + b.sum()
    return 2 * (a & b).sum() / total if total else math.nan


def hd95(a, b, spacing):
    """Larger directed 95th percentile between the surfaces (voxels that an erosion takes away)."""
    if not a.any() or not b.any():
        return math.nan
    surfaces = [m & ~binary_erosion(m) for m in (a, b)]
    distances = [distance_transform_edt(~s, sampling=spacing) for s in surfaces]
    return max(np.percentile(distances[1][surfaces[0]], 95), np.percentile(distances[0][surfaces[1]], 95))


def metrics(pred, label, num_classes=3, spacing=(1, 1, 1)):
    return segmentation_metrics(*(torch.tensor(m)[None] for m in (pred, label)), num_classes, spacing)


def nanmean(values):
    known = [v for v in values if not math.isnan(v)]
    return np.mean(known) if known else math.nan


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5.0), (2.0, 0.5, 1.3)])
def test_volumes_agree_with_scipy(spacing):
    pred, label = label_map((14, 12, 8), 0), label_map((14, 12, 8), 1)
    for row in metrics(pred, label, spacing=spacing):
        a, b = pred == row["class"], label == row["class"]
        assert row["dice"] == pytest.approx(dice(a, b), rel=1e-5)
        assert row["hd95"] == pytest.approx(hd95(a, b, spacing), rel=1e-5)
        slices = [(a[..., z], b[..., z]) for z in range(8)]
        assert row["slice_dice"] == pytest.approx(nanmean([dice(*s) for s in slices]), rel=1e-5)
        assert row["slice_hd95"] == pytest.approx(nanmean([hd95(*s, spacing[:2]) for s in slices]), rel=1e-5)


@pytest.mark.parametrize("spacing", [(1, 1), (0.4, 1.5), (0.4, 1.5, 1.0)])
def test_pictures_agree_with_scipy(spacing):
    pred, label = label_map((30, 20), 2), label_map((30, 20), 3)
    rows = metrics(pred, label, spacing=spacing)
    assert [row["class"] for row in rows] == [1, 2]
    for row in rows:
        a, b = pred == row["class"], label == row["class"]
        assert row["dice"] == row["slice_dice"] == pytest.approx(dice(a, b), rel=1e-5)
        assert row["hd95"] == row["slice_hd95"] == pytest.approx(hd95(a, b, spacing[:2]), rel=1e-5)


def box(shape, *ranges, value=1):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = value
    return mask


def test_shifted_box_by_hand():
    """A box moved by 2 voxels of 1.5 mm along the rows."""
    label = box((20, 12, 10), (4, 12), (3, 9), (2, 8))
    (row,) = metrics(np.roll(label, 2, axis=0), label, num_classes=2, spacing=(1.5, 1, 4))
    assert row["dice"] == pytest.approx(6 / 8)
    assert row["hd95"] == pytest.approx(3.0)
    assert row["slice_dice"] == pytest.approx(6 / 8)
    assert row["slice_hd95"] == pytest.approx(3.0)


def test_box_at_the_border_of_the_volume():
    label, pred = box((8, 8, 4), (0, 8), (0, 8), (0, 4)), box((8, 8, 4), (0, 8), (0, 8), (0, 3))
    (row,) = metrics(pred, label, num_classes=2, spacing=(1, 1, 2))
    assert row["hd95"] == pytest.approx(hd95(pred > 0, label > 0, (1, 1, 2)))


def test_perfect_prediction():
    label = label_map((10, 9, 5), 4)
    for row in metrics(label, label):
        assert (row["dice"], row["hd95"], row["slice_dice"], row["slice_hd95"]) == pytest.approx((1, 0, 1, 0))


BOX, NOTHING = box((8, 8, 4), (2, 6), (2, 6), (1, 3)), np.zeros((8, 8, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pred", "label", "expected"),
    [(BOX, NOTHING, 0.0), (NOTHING, BOX, 0.0), (NOTHING, NOTHING, math.nan)],
    ids=["invented", "missed", "absent"],
)
@pytest.mark.parametrize("volume", [True, False])
def test_class_missing_from_one_or_both(pred, label, expected, volume):
    pred, label = (pred, label) if volume else (pred[..., 1], label[..., 1])
    (row,) = metrics(pred, label, num_classes=2)
    assert row["dice"] == pytest.approx(expected, nan_ok=True)
    assert row["slice_dice"] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(row["hd95"])
    assert math.isnan(row["slice_hd95"])


def test_slices_without_the_class_do_not_count_and_missed_ones_count_zero():
    label, pred = box((8, 8, 6), (2, 6), (2, 6), (1, 4)), box((8, 8, 6), (2, 6), (2, 6), (2, 5))
    (row,) = metrics(pred, label, num_classes=2)
    # slices 1 to 4: missed, perfect, perfect, invented; 0 and 5 have none
    assert row["slice_dice"] == pytest.approx(0.5)
    assert row["slice_hd95"] == pytest.approx(0.0)
    assert row["dice"] == pytest.approx(2 / 3)


def test_one_class_absent_leaves_the_others_alone():
    label = box((8, 8, 4), (2, 6), (2, 6), (1, 3), value=2)
    first, second = metrics(label, label)
    assert math.isnan(first["dice"])
    assert second["dice"] == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_label_maps_may_be_of_any_number_type(dtype):
    pred, label = (torch.tensor(label_map((14, 12, 8), s))[None] for s in (0, 1))
    assert segmentation_metrics(pred.to(dtype), label.to(dtype), 3, (1, 1, 1)) == segmentation_metrics(
        pred, label, 3, (1, 1, 1)
    )


@pytest.mark.parametrize("shape", [(8, 8, 5), (8, 4, 8), (8, 8)])
def test_different_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"prediction has shape \(1, 8, 8, 4\), but the label has shape .* must be the same"
    ):
        metrics(NOTHING, np.zeros(shape, dtype=np.uint8))


def test_real_label_against_its_shift(sample_data):
    file = nib.load(min((sample_data / "Task04_Hippocampus" / "labelsTr").glob("h*.nii.gz")))
    label = np.asarray(file.dataobj).astype(np.uint8)
    pred, spacing = np.roll(label, 2, axis=1), file.header.get_zooms()[:3]
    for row in metrics(pred, label, spacing=spacing):
        a, b = pred == row["class"], label == row["class"]
        assert row["dice"] == pytest.approx(dice(a, b), rel=1e-5)
        assert row["hd95"] == pytest.approx(hd95(a, b, spacing), rel=1e-5)
