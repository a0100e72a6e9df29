import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medsaga.transforms import OrientSlicesd, cuts
from medsaga.transforms.orient_slices import AXES

SHAPE = (9, 10, 11)
VALUES = torch.arange(9 * 10 * 11).reshape(1, *SHAPE)
AFFINES = {
    "as it is": np.eye(4),
    "flipped": np.diag([-1.0, 1, -1, 1]),
    "permuted": np.eye(4)[[1, 2, 0, 3]],
    "oblique": np.block([[Rotation.from_euler("xyz", [20, -15, 30], True).as_matrix(), np.ones((3, 1))], [0, 0, 0, 1]]),
    "sagittal slices": np.diag([2.0, 0.8, 0.8, 1]),
}


def oriented(plane, affine):
    return OrientSlicesd("image", plane)({"image": MetaTensor(VALUES.clone(), affine=torch.tensor(affine))})["image"]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_each_cut_is_what_turning_to_its_plane_gives(affine):
    volume = oriented("all", affine)
    found = cuts(tuple(volume.shape[1:]), volume.affine)
    assert {cut.plane for cut in found} == set(AXES)
    assert found[0].permutation == (0, 1, 2) and not found[0].flips
    for cut in found:
        assert torch.equal(cut.turned(volume.as_tensor()), oriented(cut.plane, affine).as_tensor())


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_slices_are_added_where_they_were_cut(affine):
    volume = oriented("all", affine)
    for cut in cuts(tuple(volume.shape[1:]), volume.affine):
        total, turned = torch.zeros(volume.shape), cut.turned(volume.as_tensor())
        for start in range(0, turned.shape[-1], 4):
            cut.add(total, turned[..., start : start + 4], start)
        assert torch.equal(total, volume.as_tensor().float())


@pytest.mark.parametrize(
    ("shape", "spacing", "planes"),
    [
        ((30, 30, 30), (1, 1, 1), ["axial", "coronal", "sagittal"]),
        ((30, 30, 30), (1, 1, 3), ["axial", "coronal", "sagittal"]),
        ((30, 30, 30), (0.8, 0.8, 5), ["axial"]),
        ((30, 30, 30), (5, 0.8, 0.8), ["axial", "coronal"]),  # its own in any case
        ((30, 30, 30), (1, 1, 4), ["axial"]),
        ((30, 30, 4), (1, 1, 1), ["axial"]),
        ((4, 30, 30), (1, 1, 1), ["axial", "coronal"]),
    ],
)
def test_no_plane_with_long_pixels_or_short_sides_but_its_own(shape, spacing, planes):
    # rows to posterior, columns to left
    affine = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ np.diag([*spacing, 1])
    assert [cut.plane for cut in cuts(shape, affine)] == planes


def test_a_volume_without_an_affine_has_axial_slices_and_equal_spacing():
    assert [cut.plane for cut in cuts((20, 20, 20))] == ["axial", "coronal", "sagittal"]
