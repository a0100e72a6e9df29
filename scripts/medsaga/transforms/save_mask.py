"""Masks written on the grid of their image, under the name of its case."""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import itk
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKWriter, MetaTensor, PILWriter
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform, SaveImaged

from medsaga.dicom_seg import write_seg
from medsaga.files import replacing
from medsaga.nifti import write_nifti
from medsaga.reading import name_without_suffix, open_image, reason
from medsaga.reading.dicom import is_dicom, series_files

__all__ = ["SaveMaskd"]


class SaveMaskd(MapTransform):
    """Write label maps as ``output_dir/CASE_POSTFIX.EXT``, each whole or not at all, after ``Invertd``.

    It replaces MONAI's ``SaveImaged``, which cuts names at their last dot (``1.2.840.10`` and ``1.2.840.11`` become one
    file) and writes over what it has written before. A file of an earlier run is replaced.

    NIfTI gets the affine as sform (of scanner coordinates), and the nearest rotation as qform; NRRD and MetaImage get
    it as origin, spacing and directions. A 2-D mask has one slice in these formats. A PNG lies on its picture pixel by
    pixel, with class numbers as grey values (mode L).

    Args:
        keys: MetaTensors of class numbers from 0 to 255, (1, W, H) or (1, W, H, D), with an affine from voxels to RAS.
            Their meta holds the path of the image, ``filename_or_obj``, and the name of the case, ``case`` (without
            it, the image's name). The path of the file that is written is put there, too, as ``saved_to``.
        output_dir: folder, made if need be.
        output_postfix: what comes after the case's name.
        output_ext: ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``, for 2-D images ``.png``, or for images read from DICOM
            ``.dcm``, a segmentation object (SEG) of the image's series, which needs ``medsaga[label]``.
        class_names: names by class number, background first; those of the segments of a SEG.

    Raises:
        ValueError: another ``output_ext``; a volume as PNG; values that are not class numbers; a SEG of an image that
            is not DICOM, or in which no voxel is segmented; a file that this object has written for another image.
        OSError: naming the file that could not be written; an earlier file of that name stays.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        output_postfix: str = "seg",
        output_ext: str = ".nii.gz",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(keys)
        if output_ext not in (*_WRITERS, _SEG):
            raise ValueError(f"output_ext is {output_ext!r}; it must be one of {', '.join((*_WRITERS, _SEG))}.")
        if output_ext == _SEG and not class_names:
            raise ValueError("output_ext is '.dcm', so class_names must name the segments, background first.")
        self.class_names = list(class_names or ())
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.output_ext = output_ext
        self._sources: dict[Path, str] = {}  # what each file of this run was made from

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            self._save(out[key])
        return out

    def _save(self, mask: MetaTensor) -> None:
        source = str(mask.meta["filename_or_obj"])
        case = mask.meta.get("case") or name_without_suffix(source)
        path = self.output_dir / f"{case}_{self.output_postfix}{self.output_ext}"
        if self._sources.get(path, source) != source:
            raise ValueError(
                f"{source}: its mask would be written over that of {self._sources[path]}, as {path}. "
                "Give the two images different names."
            )
        values = _class_numbers(mask, source)
        affine = to_affine_nd(3, np.asarray(mask.affine, dtype=np.float64))
        if self.output_ext == ".png" and values.shape[2] > 1:
            raise ValueError(f"{source}: a volume cannot be a PNG; choose another output_ext, such as .nii.gz.")
        # writers recognise formats by the suffix, so the temporary name ends with it, too
        with replacing(path, f"writing{self.output_ext}") as temporary:
            try:
                if self.output_ext == _SEG:
                    self._write_seg(values, source, temporary)
                else:
                    _WRITERS[self.output_ext](values, affine, temporary)
            except OSError as err:
                raise OSError(err.errno, err.strerror or str(err), str(path)) from err
            except RuntimeError as err:  # ITK's
                raise OSError(f"{path}: it cannot be written: {reason(err)}.") from err
        self._sources[path] = source
        mask.meta["saved_to"] = str(path)

    def _write_seg(self, values: np.ndarray, source: str, path: Path) -> None:
        if Path(source).is_file() and not is_dicom(Path(source)):
            raise ValueError(
                f"{source}: it is not DICOM, so its mask cannot be a DICOM SEG (output_ext is {_SEG}); choose another "
                "output_ext, such as .nii.gz."
            )
        grid, names = open_image(source).grid, dict(enumerate(self.class_names))
        try:
            write_seg(values.reshape(grid.shape), grid, names, series_files(source), path, automatic=True)
        except (ValueError, RuntimeError) as err:
            raise ValueError(f"{source}: its mask cannot be a DICOM SEG: {err}") from err


def _class_numbers(mask: MetaTensor, source: str) -> np.ndarray:
    """(W, H, D) uint8; a 2-D mask is one slice."""
    if mask.shape[0] != 1 or mask.ndim not in (3, 4):
        raise ValueError(f"{source}: its mask has the shape {tuple(mask.shape)}; it must be (1, W, H) or (1, W, H, D).")
    given = mask.as_tensor().cpu().numpy()[0]
    with np.errstate(invalid="ignore"):  # NaN
        values = given.astype(np.uint8)
    if not np.array_equal(values, given):
        raise ValueError(f"{source}: its mask has values that are not whole numbers from 0 to 255.")
    return values.reshape(*values.shape[:2], -1)


def _write_itk(values: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = ITKWriter.create_backend_obj(values, channel_dim=None, affine=affine, dtype=np.uint8)
    itk.imwrite(image, str(path), compression=True)
    # ITK does not notice when the disk has no room for the end of a file, or for all of a small one
    try:
        whole = np.array_equal(itk.array_view_from_image(itk.imread(str(path))).T, values)
    except RuntimeError:
        whole = False
    if not whole:
        raise OSError(errno.EIO, "The file was not written whole; the disk may be full")


def _write_png(values: np.ndarray, affine: np.ndarray, path: Path) -> None:
    PILWriter.create_backend_obj(values[..., 0], dtype=np.uint8, scale=None).save(path)


# MONAI Label leaves out a bundle's SaveImaged transforms and writes masks itself
SaveImaged.register(SaveMaskd)

_SEG = ".dcm"
_WRITERS: dict[str, Callable[[np.ndarray, np.ndarray, Path], None]] = {
    ".nii.gz": write_nifti,
    ".nii": write_nifti,
    ".nrrd": _write_itk,
    ".mha": _write_itk,
    ".png": _write_png,
}
