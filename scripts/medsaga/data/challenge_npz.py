"""Cases of the CVPR 2024 "MedSAM on Laptop" challenge: one npz file with image, boxes and, in training, labels."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, SpaceKeys

from medsaga.files import replacing
from medsaga.reading.arrays import array_shapes, is_volume, read_array, spacing_of

__all__ = [
    "LoadChallengeCased",
    "challenge_datalist",
    "challenge_modality",
    "read_challenge_case",
    "write_challenge_result",
]


def challenge_modality(path: str | Path) -> str:
    """Modality in a case's file name: the first part that does not say how many dimensions it has.

    ``3DBox_CT_0012.npz`` and ``CT_Abd_0012.npz`` are ``CT``, ``2DBox_XRay_7.npz`` is ``XRay``.

    Raises:
        ValueError: the name has no such part.
    """
    match = re.match(r"(?:[23]D(?:Box)?_)?([A-Za-z][^_]*)_", Path(path).name)
    if match is None:
        raise ValueError(f"{path}: its name has no modality; it must be such as 3DBox_CT_0012.npz or MR_0012.npz.")
    return match[1]


def challenge_datalist(dataset_dir: str | Path) -> list[dict[str, str]]:
    """Cases of a folder and the folders in it: ``[{"image": path, "label": path, "patient": name, "modality": name}]``.

    Image and label are the same file, see :class:`LoadChallengeCased`. Each file counts as a patient of its own, as the
    challenge names none.

    Raises:
        FileNotFoundError: no such folder, or no npz file in it.
        ValueError: a file name without a modality.
    """
    files = sorted(Path(dataset_dir).expanduser().glob("**/*.npz"))
    if not files:
        raise FileNotFoundError(f"No npz file in {Path(dataset_dir).absolute()}.")
    return [{"image": str(f), "label": str(f), "patient": f.stem, "modality": challenge_modality(f)} for f in files]


def read_challenge_case(path: str | Path) -> dict:
    """Read one case as an item of MONAI's.

    Intensities are scaled to [0, 1] by each slice's own minimum and maximum, as LiteMedSAM was trained. The file names
    no orientation: rows are taken to go from front to back and columns from right to left (``PLS``), as the
    challenge's volumes lie.

    Args:
        path: npz file with ``imgs``, uint8 (D, H, W) or (H, W, 3) or (H, W); it may have ``boxes``, ``gts`` and, of a
            volume, ``spacing`` (x, y, z) in mm.

    Returns:
        ``image``: MetaTensor with the affine of the spacing; ``label``, where the file has ``gts``: the same, with
        integers; ``boxes``, where the file has them: first and last column x, row y (and slice z) within each object;
        ``modality``.

    Raises:
        ValueError: naming the file, when it is not an npz file, or when an array is missing or has another shape.

    Shape:
        - image: (1, H, W, D), (1, H, W) or (3, H, W); label: (1, H, W[, D])
        - boxes: (N, 6) with x0, y0, z0, x1, y1, z1, or (N, 4) with x0, y0, x1, y1

    Source:
        Baseline and data format of the challenge, "Segment Anything in Medical Images on Laptop" (CVPR 2024).
    """
    shapes = array_shapes(path)
    if "imgs" not in shapes:
        raise ValueError(f"{path}: it has no array 'imgs'. It must have imgs, and may have boxes, gts and spacing.")
    volume = is_volume(path, "imgs", shapes, "gts")
    arrays = {key: read_array(path, key) for key in ("imgs", "gts", "boxes", "spacing") if key in shapes}
    pixels, boxes, label = arrays["imgs"], arrays.get("boxes"), arrays.get("gts")
    if volume:
        image = np.moveaxis(pixels, 0, -1)[None]
        label = np.moveaxis(label, 0, -1) if label is not None else None
    else:
        image = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels[None]
    affine = _affine(spacing_of(path, arrays.get("spacing"))[: image.ndim - 1])
    item = {"image": _tensor(_unit(image), affine, path), "modality": challenge_modality(path)}
    if label is not None:
        item["label"] = _tensor(label[None].astype(np.int32), affine, path)
    if boxes is not None:
        item["boxes"] = torch.from_numpy(boxes.astype(np.float32))
    return item


def _unit(image: np.ndarray) -> np.ndarray:
    """Scale each slice of (C, H, W[, D]) to [0, 1]."""
    axes = (0, 1, 2)
    low = image.min(axis=axes, keepdims=True).astype(np.float32)
    span = image.max(axis=axes, keepdims=True) - low
    return (image - low) / np.maximum(span, 1e-8)


def _affine(spacing: np.ndarray) -> np.ndarray:
    """From (row, column[, slice]) to mm, right, anterior and superior being positive."""
    affine = np.eye(len(spacing) + 1)
    affine[:2, :2] = [[0, -spacing[0]], [-spacing[1], 0]]
    if len(spacing) == 3:
        affine[2, 2] = spacing[2]
    return affine


def _tensor(array: np.ndarray, affine: np.ndarray, path: str | Path) -> MetaTensor:
    meta = {
        MetaKeys.SPACE: SpaceKeys.RAS,
        "filename_or_obj": str(path),
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        MetaKeys.SPATIAL_SHAPE: np.array(array.shape[1:]),
    }
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(affine), meta=meta)


def write_challenge_result(path: str | Path, segmentation: torch.Tensor) -> None:
    """Write the challenge's result of a case: ``segs``, the number of the box of each pixel, 0 for none.

    Args:
        path: npz file, which by the challenge's rule has the case's name; written whole or not at all.
        segmentation: numbers of boxes, (1, H, W) or (1, H, W, D), as of :class:`~medsaga.inferers.BoxInferer`.

    The array is (H, W) or (D, H, W), uint8 up to 255 boxes and uint16 beyond.
    """
    path = Path(path)
    numbers = np.asarray(segmentation)[0]
    if numbers.ndim == 3:
        numbers = np.moveaxis(numbers, -1, 0)
    numbers = numbers.astype(np.uint8 if numbers.max(initial=0) <= 255 else np.uint16)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, segs=numbers)


class LoadChallengeCased(MapTransform):
    """Dictionary transform for a bundle's ``preprocessing``: images and labels of npz cases.

    It replaces :class:`~medsaga.transforms.ReadImaged` and :class:`~medsaga.transforms.OrientSlicesd`.

    Args:
        keys: of paths: a label key gets the ``gts`` of the file, any other the image.
        label_keys: those of ``keys`` that name labels.

    Raises:
        ValueError: naming the file, when it cannot be read or has no ``gts``.
    """

    def __init__(self, keys: KeysCollection, label_keys: KeysCollection = ("label",)) -> None:
        super().__init__(keys)
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, str]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            case = read_challenge_case(out[key])
            wanted = "label" if key in self.label_keys else "image"
            if wanted not in case:
                raise ValueError(f"{out[key]}: it has no array 'gts', the labels that training needs.")
            out[key] = case[wanted]
        return out
