from __future__ import annotations

import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, ScaleIntensityRanged
from scipy.spatial.transform import Rotation

from medsaga.inferers import SliceBatchInferer
from medsaga.transforms import CheckCased, OrientSlicesd, SaveMaskd

CODES = {"axial": "PLS", "coronal": "ILP", "sagittal": "IPL"}
FLIPS = [np.diag(signs) for signs in itertools.product([1, -1], repeat=3)]
ORDERS = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]


def rotated(matrix, spacing=(1, 1, 1), origin=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = matrix @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def turn(axis, degrees=45):
    return Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()


def random_affine(random, index):
    """Oblique, exactly 45° about an axis, sheared a little or along the axes, with flips and swaps of axes."""
    directions = [
        Rotation.random(random_state=random).as_matrix,
        lambda: turn(random.randint(3)),
        lambda: Rotation.random(random_state=random).as_matrix() @ (np.eye(3) + 1e-3 * random.uniform(-1, 1, (3, 3))),
        lambda: np.eye(3),
    ][index % 4]()
    directions = ORDERS[random.randint(6)] @ directions @ FLIPS[random.randint(8)] @ ORDERS[random.randint(6)]
    return rotated(directions, random.uniform(0.3, 6, 3), random.uniform(-300, 300, 3))


def meta_tensor(values, affine, name="image", **meta):
    values = torch.as_tensor(np.asarray(values))
    meta = {"filename_or_obj": f"/data/{name}.nii.gz", "original_affine": np.array(affine), **meta}
    return MetaTensor(values[None], affine=torch.tensor(affine, dtype=torch.float64), meta=meta)


def world_centre(mask, affine):
    return (affine @ [*np.argwhere(mask).mean(0), 1])[:3]


def preprocessing(plane="auto", keys="image"):
    scale = ScaleIntensityRanged("image", 0, 200, 0, 1, clip=True)
    return Compose([OrientSlicesd(keys, plane=plane), scale])


def segmented_and_inverted(transform, image):
    """What a bundle does, with a threshold in the place of a network; the prepared image, and the mask on its grid."""
    prepared = transform({"image": image})
    # as SliceBatchInferer returns it: with the image's metadata
    mask = (prepared["image"] > 0.9).to(torch.uint8)
    invert = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=True, to_tensor=True)
    return prepared["image"], invert({**prepared, "pred": mask})["pred"]


@pytest.mark.parametrize("plane", ["auto", *CODES])
def test_masks_of_500_random_affines_come_back_to_the_voxel(plane, tmp_path):
    random = np.random.RandomState(["auto", *CODES].index(plane))
    transform, save = preprocessing(plane), SaveMaskd("pred", tmp_path)
    for index in range(500):
        affine = random_affine(random, index)
        shape = tuple(random.randint(3, 9, 3)) if index % 7 else tuple(random.permutation([1, 5, 8]))
        low = [random.randint(n) for n in shape]
        high = [random.randint(a, n) + 1 for a, n in zip(low, shape)]
        truth = np.zeros(shape, dtype=bool)
        truth[tuple(slice(a, b) for a, b in zip(low, high))] = True
        values = np.where(truth, 200, random.uniform(0, 150, shape))

        prepared, mask = segmented_and_inverted(transform, meta_tensor(values, affine, f"case{index}"))
        # by its own affine, the prepared image shows the block where it is
        seen = world_centre((prepared > 0.9)[0].numpy(), prepared.affine.numpy())
        assert np.abs(seen - world_centre(truth, affine)).max() < 1e-9
        assert mask.shape == (1, *shape)
        assert mask.affine.numpy().tobytes() == affine.tobytes() == mask.meta["original_affine"].tobytes()
        assert np.array_equal(mask[0].numpy(), truth)

        if index % 20 == 0:
            saved = nib.load(save({"pred": mask})["pred"].meta["saved_to"])
            assert saved.shape == shape
            assert np.array_equal(saved.affine, affine.astype(np.float32))
            assert np.array_equal(np.asarray(saved.dataobj), truth)


@pytest.mark.parametrize("plane", CODES)
def test_axes_are_those_of_nibabel_where_the_nearest_is_clear(plane):
    random = np.random.RandomState(0)
    for _ in range(100):
        tilt = Rotation.from_rotvec(random.uniform(-0.4, 0.4, 3)).as_matrix()
        directions = tilt @ ORDERS[random.randint(6)] @ FLIPS[random.randint(8)]
        values = random.uniform(size=(2, 3, 4))
        affine = rotated(directions, random.uniform(0.5, 3, 3), random.uniform(-100, 100, 3))
        out = OrientSlicesd("image", plane=plane)({"image": meta_tensor(values, affine)})["image"]
        assert "".join(nib.aff2axcodes(out.affine.numpy())) == CODES[plane]
        # the same as nibabel's reordering
        source, target = nib.io_orientation(affine), nib.orientations.axcodes2ornt(CODES[plane])
        change = nib.orientations.ornt_transform(source, target)
        assert np.array_equal(out[0].numpy(), nib.orientations.apply_orientation(values, change))
        expected = affine @ nib.orientations.inv_ornt_aff(change, values.shape)
        assert np.abs(out.affine.numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("plane", CODES)
def test_label_whose_header_is_rounded_is_turned_as_its_image_at_45_degrees(axis, plane):
    random = np.random.RandomState(axis)
    for index in range(50):
        flips = FLIPS[random.randint(8)] @ ORDERS[random.randint(6)]
        # also where the tolerance for ties ends, at 45.02°
        affine = rotated(turn(axis, 45 if index < 25 else random.uniform(44.9, 45.1)) @ flips, (1, 1, 2), (5, 6, 7))
        values = random.uniform(size=(4, 5, 6))
        near = affine + np.vstack([random.uniform(-1e-5, 1e-5, (3, 4)), np.zeros(4)])
        data = {"image": meta_tensor(values, affine), "label": meta_tensor(values > 0.5, near, "label")}
        out = OrientSlicesd(["image", "label"], plane=plane)(data)
        assert torch.equal(out["label"].as_tensor(), out["image"].as_tensor() > 0.5)
        assert np.abs(out["label"].affine - out["image"].affine).max() < 1e-3


def test_label_stored_in_another_order_of_axes_lies_on_its_image():
    values = np.random.RandomState(0).uniform(size=(4, 5, 6))
    affine = rotated(turn(0, 20), (1, 1, 2), (5, 6, 7))
    image = nib.Nifti1Image(values, affine)
    stored = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    data = {
        "image": meta_tensor(values, affine),
        "label": meta_tensor(stored.get_fdata() > 0.5, stored.affine, "label"),
    }
    out = OrientSlicesd(["image", "label"])(data)
    assert torch.equal(out["label"].as_tensor(), out["image"].as_tensor() > 0.5)
    assert np.abs(out["label"].affine - out["image"].affine).max() < 1e-9


def test_mirrored_header_of_a_label_is_found():
    values = np.random.RandomState(0).uniform(size=(4, 5, 6)).astype(np.float32)
    affine = rotated(np.diag([-1, -1, 1]), (1, 1, 2))
    data = {
        "image": meta_tensor(values, affine),
        "label": meta_tensor((values > 0.5).astype(np.float32), rotated(np.diag([1, -1, 1]), (1, 1, 2)), "label"),
    }
    with pytest.raises(ValueError, match=r"label\.nii\.gz: by its header it lies"):
        CheckCased(2)(OrientSlicesd(["image", "label"])(data))


# directions of a sagittal and a coronal acquisition, as scanners store them: columns, rows, slices
SAGITTAL, CORONAL = np.array([[0, 0, -1], [-1, 0, 0], [0, -1, 0]]), np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]])


@pytest.mark.parametrize(
    ("shape", "spacing", "directions", "plane"),
    [
        ((6, 6, 6), (1, 1, 1), np.eye(3), "axial"),
        ((6, 6, 6), (1, 1, 5), np.eye(3), "axial"),
        ((6, 6, 6), (5, 1, 1), np.eye(3), "sagittal"),
        ((6, 6, 6), (1, 5, 1), np.eye(3), "coronal"),
        ((6, 6, 6), (1, 1, 5), SAGITTAL, "sagittal"),
        ((6, 6, 6), (1, 1, 5), CORONAL, "coronal"),
        ((6, 6, 6), (1, 1, 5), turn(0, 30) @ SAGITTAL, "sagittal"),
        ((6, 6, 6), (1, 1, 1), SAGITTAL, "axial"),
        ((6, 6, 6), (1, 1, 1.5), SAGITTAL, "sagittal"),
        ((6, 6, 6), (1, 1, 1.49), SAGITTAL, "axial"),
        ((6, 6, 6), (1, 1.2, 1.7), SAGITTAL, "axial"),  # 1.4 times one of the others
        ((6, 6, 6), (1, 5, 5), SAGITTAL, "axial"),
        ((6, 7, 1), (1, 1, 1), SAGITTAL, "sagittal"),
        ((1, 40, 20), (1, 1, 2), np.eye(3), "sagittal"),
        ((40, 1, 20), (1, 1, 2), np.eye(3), "coronal"),
        ((1, 40, 20), (1, 1, 5), np.eye(3), "sagittal"),  # one slice, whatever the spacing
        ((1, 1, 20), (1, 1, 5), np.eye(3), "axial"),
    ],
)
def test_auto_is_the_plane_of_acquisition(shape, spacing, directions, plane, caplog):
    values = np.random.RandomState(0).uniform(size=shape)
    affine = rotated(directions, spacing)
    data = {"image": meta_tensor(values, affine), "label": meta_tensor(values > 0.5, affine, "label")}
    out = OrientSlicesd(["image", "label"])(data)
    assert "".join(nib.aff2axcodes(out["image"].affine.numpy())) == CODES[plane]
    assert torch.equal(out["label"].as_tensor(), out["image"].as_tensor() > 0.5)
    said = [record.message for record in caplog.records]
    assert said == [] if plane == "axial" else len(said) == 1 and plane in said[0] and "image.nii.gz" in said[0]
    # asked for by name, it is what is asked for, and nothing is said
    caplog.clear()
    for asked, codes in CODES.items():
        turned = OrientSlicesd(["image", "label"], plane=asked)(data)
        assert "".join(nib.aff2axcodes(turned["label"].affine.numpy())) == codes
    assert not caplog.records


def test_label_follows_the_plane_of_its_image():
    values = np.random.RandomState(0).uniform(size=(4, 5, 6))
    label = meta_tensor(values > 0.5, rotated(np.eye(3)), "label")  # a header without spacing
    data = {"image": meta_tensor(values, rotated(np.eye(3), (5, 1, 1))), "label": label}
    out = OrientSlicesd(["image", "label"])(data)
    assert torch.equal(out["label"].as_tensor(), out["image"].as_tensor() > 0.5)


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("plane", ["auto", "axial", "sagittal"])
def test_picture_is_transposed_and_comes_back(size, plane):
    """(columns, rows) of a file become rows and columns."""
    values = np.random.RandomState(0).choice([0.0, 100, 200], size=(6, 4))
    affine = np.diag([-1.0, -1, 1, 1][:2] + [1.0] * (size - 2))
    prepared, mask = segmented_and_inverted(preprocessing(plane), meta_tensor(values, affine))
    assert np.array_equal(prepared[0].numpy() > 0.9, values.T == 200)
    assert np.array_equal(mask[0].numpy(), values == 200)
    assert mask.affine.numpy().tobytes() == affine.tobytes()


def test_picture_with_channels_and_flips():
    values = np.random.RandomState(0).uniform(size=(3, 6, 4))
    affine = np.diag([1.0, -1, 1])
    image = MetaTensor(torch.tensor(values), affine=torch.tensor(affine))
    out = OrientSlicesd("image")({"image": image})["image"]
    assert np.array_equal(out.numpy(), values[:, ::-1].transpose(0, 2, 1))
    assert np.array_equal(out.affine.numpy(), [[0, -1, 5], [-1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("plane", CODES)
def test_2d_slice_is_turned_as_a_volume_of_one_slice(plane):
    values = np.random.RandomState(0).uniform(size=(6, 4))
    directions = {"axial": np.diag([1, -1, 1]), "coronal": CORONAL, "sagittal": SAGITTAL}[plane]
    affine = rotated(turn(2, 10) @ directions, (1, 2, 3), (4, 5, 6))
    flat = OrientSlicesd("image")({"image": meta_tensor(values, affine)})["image"]
    volume = OrientSlicesd("image")({"image": meta_tensor(values[..., None], affine)})["image"]
    assert torch.equal(flat.as_tensor(), volume.as_tensor()[..., 0])
    assert np.abs(flat.affine[:, [0, 1, 3]] - volume.affine[:, [0, 1, 3]]).max() < 1e-12


@pytest.mark.parametrize("plane", ["auto", *CODES])
def test_one_sagittal_slice_is_segmented_in_any_plane(plane):
    """40 × 20 pixels in one slice: axial slices of it are one pixel wide."""
    truth = np.zeros((1, 40, 20), dtype=bool)
    truth[0, 8:16, 10:14] = True  # 32 voxels
    transform = preprocessing(plane)
    image = transform({"image": meta_tensor(200.0 * truth, rotated(np.eye(3), (1, 1, 2)))})["image"]
    infer = SliceBatchInferer(56, batch_size=7)
    mask = infer(image[None], lambda slices: torch.cat([0.5 - slices, slices - 0.5], dim=1))[0]
    restored = Invertd("pred", transform=transform, orig_keys="image")({"pred": mask, "image": image})["pred"]
    assert np.array_equal(restored[0].numpy(), truth)


def test_masks_come_back_after_a_data_loader():
    values = np.random.RandomState(0).choice([0.0, 100, 200], size=(4, 5, 6))
    affine = rotated(turn(1) @ turn(0, 20), (1, 2, 3), (4, 5, 6))
    transform = preprocessing("coronal")
    batch = next(iter(DataLoader(Dataset([{"image": meta_tensor(values, affine)}], transform), batch_size=1)))
    (item,) = decollate_batch({"image": batch["image"], "pred": (batch["image"] > 0.9).to(torch.uint8)})
    mask = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=True, to_tensor=True)(item)["pred"]
    assert np.array_equal(mask[0].numpy(), values == 200)
    assert mask.affine.numpy().tobytes() == affine.tobytes()


def test_mask_without_metadata_comes_back():
    """As the app's prompted task hands it to ``Invertd``."""
    values = np.random.RandomState(0).choice([0.0, 100, 200], size=(4, 5, 6))
    transform = preprocessing("sagittal")
    image = transform({"image": meta_tensor(values, rotated(turn(1), (1, 2, 3)))})["image"]
    mask = MetaTensor((image.as_tensor()[0] > 0.9)[None])
    restored = Invertd("pred", transform=transform, orig_keys="image")({"pred": mask, "image": image})["pred"]
    assert np.array_equal(restored[0].numpy(), values == 200)


def test_what_comes_in_is_left_as_it_is():
    values = np.random.RandomState(0).uniform(size=(4, 5, 6))
    affine = rotated(SAGITTAL, (1, 1, 3))
    data = {"image": meta_tensor(values, affine), "patient": "p1"}
    transform = OrientSlicesd("image")
    out = transform(data)
    assert out["patient"] == "p1"
    assert np.array_equal(data["image"][0].numpy(), values)
    assert np.array_equal(data["image"].affine.numpy(), affine)
    assert data["image"].applied_operations == []
    assert out["image"].dtype == data["image"].dtype
    before = out["image"].affine.clone()
    transform.inverse(dict(out))
    assert torch.equal(out["image"].affine, before)


def test_transform_is_its_parameters():
    """What the slice cache describes it by does not change with use, and processes can be sent it."""
    transform = OrientSlicesd(["image", "label"], plane="coronal", allow_missing_keys=True)
    parameters = dict(vars(transform))
    image = meta_tensor(np.zeros((2, 3, 4)), np.eye(4))
    transform({"image": image})
    assert {key: value for key, value in vars(transform).items() if key != "_tracing"} == parameters
    out = pickle.loads(pickle.dumps(transform))({"image": image})["image"]
    assert nib.aff2axcodes(out.affine.numpy()) == tuple("ILP")


def test_other_planes_are_refused():
    with pytest.raises(ValueError, match="plane is 'PLS'; it must be auto, axial, coronal, sagittal"):
        OrientSlicesd("image", plane="PLS")


def test_a_bundle_of_2d_images_refuses_volumes():
    transform = OrientSlicesd("image", plane=None)
    with pytest.raises(ValueError, match=r"image\.nii\.gz: it is a volume of shape \(2, 3, 4\); expected a 2-D image"):
        transform({"image": meta_tensor(np.zeros((2, 3, 4)), np.eye(4))})
    assert transform({"image": meta_tensor(np.zeros((2, 3)), np.eye(3))})["image"].shape == (1, 3, 2)
    # rows to inferior, columns to left, as in a volume's coronal slices
    slices = transform({"image": meta_tensor(np.zeros((2, 3, 1)), rotated(CORONAL))})["image"]
    assert slices.shape == (1, 3, 2, 1)


def test_missing_key_is_an_error():
    with pytest.raises(KeyError):
        OrientSlicesd(["image", "label"])({"image": meta_tensor(np.zeros((2, 3, 4)), np.eye(4))})


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((2, 3, 4), np.diag([1.0, 0, 1, 1]), r"image\.nii\.gz: its affine .* must be invertible"),
        ((2, 3, 4), rotated(np.ones((3, 3))), r"image\.nii\.gz: its affine"),
        ((2, 3, 4), np.diag([np.nan, 1, 1, 1]), r"image\.nii\.gz: its affine"),
        ((2, 3), np.diag([1.0, 0, 1]), r"image\.nii\.gz: its affine"),
        ((2, 3, 4, 5), np.eye(4), r"image\.nii\.gz: it has 4 axes \(2, 3, 4, 5\); expected"),
        ((2,), np.eye(4), r"image\.nii\.gz: it has 1 axes"),
    ],
)
def test_images_that_cannot_be_turned_are_refused(shape, affine, message):
    with pytest.raises(ValueError, match=message):
        OrientSlicesd("image")({"image": meta_tensor(np.zeros(shape), affine)})
