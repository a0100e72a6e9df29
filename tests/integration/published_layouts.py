"""Small folders laid out as the downloads of data sets that cannot be had here: same names, types and codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from PIL import Image

__all__ = ["LAYOUTS", "Made", "affine", "samed_slices"]


@dataclass
class Made:
    """A folder that was made.

    Args:
        cases: how many labelled cases it has.
        name: part of the path of a case's image.
        voxels: of that case, how many there are of each class, background first.
        image: file to segment.
    """

    cases: int
    name: str
    voxels: list[int]
    image: Path


def affine(spacing: tuple[float, float, float]) -> np.ndarray:
    """Of a volume as scanners give it: columns to the left, rows to posterior."""
    made = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    made[:3, 3] = [40.0, 30.0, -100.0]
    return made


def save_volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine(spacing)), path)
    return path


def save_picture(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def rgb(random: np.random.RandomState, mask: np.ndarray) -> np.ndarray:
    """A noisy picture in which what is masked is brighter and redder."""
    picture = random.randint(20, 90, (*mask.shape, 3))
    picture[mask > 0] += [120, 60, 30]
    return picture.astype(np.uint8)


def disc(shape: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def synapse(folder: Path) -> Made:
    """BTCV: 30 CT with 13 organs, ``imgNNNN`` and ``labelNNNN``; numbers as of the original."""
    random = np.random.RandomState(0)
    numbers = [*range(1, 11), *range(21, 41)]
    for number in numbers:
        label = np.zeros((30, 24, 5), np.uint8)
        for organ in range(1, 14):
            x, y = 2 + 5 * ((organ - 1) % 5), 2 + 7 * ((organ - 1) // 5)
            label[x : x + 4, y : y + 5, 1:4] = organ
        image = np.where(label > 0, 20 + 10 * label.astype(int), -900) + random.randint(-9, 9, label.shape)
        image = save_volume(folder / f"Training/img/img{number:04d}.nii.gz", image.astype(np.int16), (0.8, 0.8, 3.0))
        save_volume(folder / f"Training/label/label{number:04d}.nii.gz", label, (0.8, 0.8, 3.0))
    test = save_volume(folder / "Testing/img/img0061.nii.gz", np.asarray(nib.load(image).dataobj), (0.7, 0.7, 5.0))
    organ = 4 * 5 * 3
    return Made(30, "img0005", [label.size - 8 * organ, *[organ] * 8], test)


def breast_ultrasound(folder: Path) -> Made:
    """BUSI: a folder a kind, masks beside their images, several where there are several lesions, of mixed mode."""
    random = np.random.RandomState(0)
    first, second = disc((46, 56), (20, 18), 8), disc((46, 56), (30, 42), 5)
    for kind in ("benign", "malignant", "normal"):
        for number in (1, 2, 10):
            found = [] if kind == "normal" else [first, second][: 2 if number == 1 else 1]
            mask = np.any(found, axis=0) if found else np.zeros((46, 56), bool)
            name = f"{kind}/{kind} ({number})"
            save_picture(folder / f"{name}.png", rgb(random, mask))
            for i, one in enumerate(found or [mask]):
                mode = {1: "1", 2: "L", 10: "RGB"}[number]
                save_picture(folder / f"{name}_mask{f'_{i}' if i else ''}.png", one.astype(np.uint8) * 255, mode)
    lesion = int((first | second).sum())
    return Made(9, "malignant (1).png", [46 * 56 - lesion, lesion], folder / "benign/benign (1).png")


def fundus(folder: Path) -> Made:
    """REFUGE: JPEG, and BMP in which the cup is 0, the disc 128 and all else 255."""
    random = np.random.RandomState(0)
    for group, letter in (("Glaucoma", "g"), ("Non-Glaucoma", "n")):
        for number in (1, 2, 3):
            mask = np.full((60, 62), 255, np.uint8)
            mask[disc(mask.shape, (30, 24), 12)] = 128
            mask[disc(mask.shape, (30, 24), 6)] = 0
            name = f"{group}/{letter}{number:04d}"
            save_picture(folder / f"Training400/{name}.jpg", rgb(random, mask < 255))
            save_picture(folder / f"Annotation-Training400/Disc_Cup_Masks/{name}.bmp", mask)
    test = save_picture(folder / "REFUGE-Validation400/V0001.jpg", rgb(random, mask < 255)[:, :50])
    return Made(6, "n0002", [int((mask == value).sum()) for value in (255, 128, 0)], test)


def brain_tumour(folder: Path) -> Made:
    """BraTS 2021: a folder a case, four sequences, labels 1, 2 and 4, skull-stripped."""
    random = np.random.RandomState(0)
    for number in (0, 2, 3, 5):
        label = np.zeros((24, 24, 6), np.uint8)
        label[8:16, 8:18, 1:5] = 2
        label[10:14, 10:15, 2:4] = 4
        label[11:13, 11:13, 2:4] = 1
        brain = np.zeros(label.shape, bool)
        brain[3:21, 3:21] = True
        case = f"BraTS2021_{number:05d}"
        for i, sequence in enumerate(("flair", "t1", "t1ce", "t2")):
            image = np.where(brain, 300 + 200 * (i + 1) * label + random.randint(0, 50, label.shape), 0)
            path = save_volume(folder / case / f"{case}_{sequence}.nii.gz", image.astype(np.int16), (1.0, 1.0, 1.0))
        save_volume(folder / case / f"{case}_seg.nii.gz", label, (1.0, 1.0, 1.0))
    counts = [int((label == value).sum()) for value in (0, 1, 2, 4)]
    return Made(4, "BraTS2021_00002", counts, path.with_name(path.name.replace("_t2", "_flair")))


def thyroid_ultrasound(folder: Path) -> Made:
    """TN3K: JPEGs, the masks too; the same numbers in the parts of the split."""
    random = np.random.RandomState(0)
    mask = np.zeros((40, 48), bool)
    mask[8:24, 16:40] = True  # blocks of eight pixels, which a JPEG keeps
    for part, count in (("trainval", 5), ("test", 2)):
        for number in range(count):
            save_picture(folder / f"{part}-image/{number:04d}.jpg", rgb(random, mask), "L" if number else None)
            save_picture(folder / f"{part}-mask/{number:04d}.jpg", mask.astype(np.uint8) * 255)
        (folder / f"label4{part}.csv").write_text("0000.jpg,1\n")
    (folder / "tn3k-trainval-fold0.json").write_text('{"train": [0, 1], "val": [2]}')
    return Made(7, "trainval-image/0003", [40 * 48 - 16 * 24, 16 * 24], folder / "test-image/0001.jpg")


def skin_lesion(folder: Path) -> Made:
    """ISIC 2018, task 1: JPEG and PNG of 0 and 255, and text files beside them."""
    random = np.random.RandomState(0)
    for number in (0, 1, 3, 4, 13):
        mask = disc((50, 70), (25, 30), 14)
        name = f"ISIC_{number:07d}"
        save_picture(folder / f"ISIC2018_Task1-2_Training_Input/{name}.jpg", rgb(random, mask))
        truth = folder / f"ISIC2018_Task1_Training_GroundTruth/{name}_segmentation.png"
        save_picture(truth, mask.astype(np.uint8) * 255)
    for text in ("ATTRIBUTION.txt", "LICENSE.txt"):
        (folder / "ISIC2018_Task1-2_Training_Input" / text).write_text("of the download\n")
    test = save_picture(folder / "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg", rgb(random, mask))
    return Made(5, "ISIC_0000003", [50 * 70 - int(mask.sum()), int(mask.sum())], test)


def cvpr24(folder: Path) -> Made:
    """MedSAM on Laptop: npz of volumes with spacing, grey pictures as three equal colours, and pictures in colour."""
    random = np.random.RandomState(0)
    folder.mkdir(parents=True)
    for number in range(4):
        gts = np.zeros((5, 30, 40), np.uint8)
        gts[1:4, 5:15, 5:20], gts[2:5, 18:26, 22:36] = 1, 7
        imgs = (random.randint(0, 60, gts.shape) + 25 * gts).astype(np.uint8)
        name = folder / f"{'CT' if number % 2 else 'MR'}_Abd_{number:04d}.npz"
        np.savez_compressed(name, imgs=imgs, gts=gts, spacing=np.array([0.8, 0.7, 2.5]))
    for number, modality in enumerate(("Endoscopy", "Dermoscopy", "US")):
        mask = (disc((44, 52), (20, 20), 9) + 2 * disc((44, 52), (30, 40), 6)).astype(np.uint8)
        np.savez_compressed(folder / f"{modality}_Set_{number:04d}.npz", imgs=rgb(random, mask), gts=mask)
    return Made(7, "CT_Abd_0001", [gts.size - 450 - 336, 786], folder / "CT_Abd_0003.npz")


LAYOUTS: dict[str, Callable[[Path], Made]] = {
    made.__name__: made
    for made in (synapse, breast_ultrasound, fundus, brain_tumour, thyroid_ultrasound, skin_lesion, cvpr24)
}


def samed_slices(folder: Path) -> dict[str, np.ndarray]:
    """SAMed's preprocessed Synapse: a slice a file in training, a volume a file in test; intensities in [0, 1]."""
    random = np.random.RandomState(0)
    (folder / "train_npz").mkdir(parents=True)
    (folder / "test_vol_h5").mkdir()
    label = np.zeros((4, 32, 32), np.float32)
    for organ in range(1, 9):
        x, y = 3 + 7 * ((organ - 1) % 4), 4 + 14 * ((organ - 1) // 4)
        label[1:, y : y + 8, x : x + 5] = organ
    for case in (5, 6, 7):
        image = (label / 10 + random.uniform(0, 0.1, label.shape)).astype(np.float32)
        for z in range(len(label)):
            np.savez(folder / f"train_npz/case{case:04d}_slice{z:03d}.npz", image=image[z], label=label[z])
    for case in (1, 2):
        with h5py.File(folder / f"test_vol_h5/case{case:04d}.npy.h5", "w") as file:
            file["image"], file["label"] = image, label
    return {"image": image, "label": label}
