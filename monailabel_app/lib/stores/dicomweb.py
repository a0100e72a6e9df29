"""MONAI Label's DICOMweb datastore, made safe to work with.

Images are series, named by their Series Instance UID. They are fetched once into a cache folder and converted to NIfTI.
A finished label becomes a segmentation object (SEG) in the image's study; it is never overwritten, a later one is a
series of its own. The newest SEG whose segments bear names of served classes is an image's training label, wherever it
was made. Labels of other tags are only in the cache.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest

from lib.labels.check import CheckedLabel, counts_by_value
from lib.labels.grid import read_label
from lib.labels.naming import Meaning, fitting_models, known_segments, named_values
from lib.names import refusing
from lib.served_model import ServedModel
from lib.stores.archive import Archive, StoredSeg, is_uid
from lib.stores.folder import FolderStore
from lib.stores.listing import plain_tag
from medsaga.dicom_seg import read_seg, write_seg
from medsaga.nifti import write_series
from medsaga.reading import Grid
from medsaga.reading.dicom import open_dicom, series_files

__all__ = ["DicomStore"]

logger = logging.getLogger(__name__)

_FINAL = DefaultLabelTag.FINAL.value
_NOTED = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")  # viewers show them


class DicomStore(FolderStore, DICOMWebDatastore):  # MONAI Label answers with SEGs where it sees its own class
    """A folder store whose images and final labels are those of a DICOM store.

    Args:
        client: of the DICOM store.
        search_filter: see :class:`~lib.stores.archive.Archive`.
        models: served models by name, whose classes labels may have.
        cache_path: folder of the cache; None for MONAI Label's own in the home folder.
        fetch_by_frame: see :class:`~lib.stores.archive.Archive`.
        convert_to_nifti: must be True; the argument is MONAI Label's.
    """

    has_files = False

    def __init__(
        self,
        client: DICOMwebClient,
        search_filter: dict[str, Any],
        models: Mapping[str, ServedModel],
        cache_path: str | None = None,
        fetch_by_frame: bool = False,
        convert_to_nifti: bool = True,
    ) -> None:
        if not convert_to_nifti:
            raise ValueError("MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI must be true, because the bundles read NIfTI")
        self._client = client  # MONAI Label's class uses it
        self.archive = Archive(client, search_filter, models, fetch_by_frame)
        cache = Path(cache_path or Path.home() / ".cache" / "monailabel" / "dicom") / md5_digest(client.base_url)
        FolderStore.__init__(self, str(cache), models, ("*.nii.gz", "*.nii"), auto_reload=True)

    # --- what the store has -----------------------------------------------------------------------------------------

    def list_images(self) -> list[str]:
        return self.archive.images()

    def get_labeled_images(self, label_tag: str | None = None, labels: Sequence[str] | None = None) -> list[str]:
        """Ids of the images that have a label of a tag.

        For ``final`` the DICOM store is asked, because labels come and go there without this server.
        """
        if plain_tag(label_tag or _FINAL) != _FINAL:
            return super().get_labeled_images(label_tag)
        return list(self.archive.newest())

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """The image's tags."""
        tags = [tag for tag in super().get_labels_by_image_id(image_id) if tag != _FINAL]
        return dict.fromkeys([*tags, _FINAL] if image_id in self.archive.newest() else tags, image_id)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images and their newest labels as NIfTI files, fetched where the cache lacks them."""
        pairs = []
        for image in self.archive.newest():
            try:
                pairs.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, _FINAL)})
            except HTTPException as e:  # one unreadable series must not keep the others from training
                logger.warning("series %s is left out of the training data: %s", image, e.detail)
        return pairs

    # --- images -----------------------------------------------------------------------------------------------------

    def get_image_uri(self, image_id: str) -> str:
        """Path of the series as NIfTI; its instances lie beside it, in the folder of its name.

        Raises:
            HTTPException: 400 for what is no UID, 404 for an unknown series, 422 for one that is no regular volume.
        """
        _check_uid(image_id)
        folder, file = self._image_path(image_id), self._image_path(f"{image_id}.nii.gz")
        if not file.is_file() or image_id not in self._datastore.objects:
            if not folder.is_dir():
                self.archive.fetch(image_id, folder)
            series = self.archive.series(image_id)
            noted = {"SeriesInstanceUID": image_id, **{key: str(series.get(key) or "UNK") for key in _NOTED}}
            with tempfile.TemporaryDirectory() as work:
                written = Path(work) / file.name
                with refusing(folder, f"Series {image_id}"):
                    write_series(folder, written)
                with self._changing(f"image {image_id}"):
                    self._take_image(image_id, written, ".nii.gz", noted)
        return os.path.realpath(file)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Notes about a series; none before it has been fetched."""
        _check_uid(image_id)
        return super().get_image_info(image_id) if image_id in self._datastore.objects else {}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        self.get_image_uri(image_id)
        super().update_image_info(image_id, info)

    def _grid(self, image_id: str) -> Grid:
        """Grid of a series, from its instances; a NIfTI file does not say whether it was a projection."""
        self.get_image_uri(image_id)
        folder = self._image_path(image_id)
        with refusing(folder, f"Series {image_id}"):
            return open_dicom(folder).grid

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        raise HTTPException(405, "Images come from the DICOM store: send the series there, not to this server")

    def remove_image(self, image_id: str) -> None:
        raise HTTPException(405, "Images belong to the DICOM store: delete the series there")

    # --- labels -----------------------------------------------------------------------------------------------------

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Notes about a label, always with ``models``; a SEG that has not been read yet is not fetched for them."""
        if plain_tag(label_tag) == _FINAL:
            seg = self._final(label_id)
            if not self._is_cached(seg):
                return {"SeriesInstanceUID": seg.series, "models": list(known_segments(seg.segments, self.models)[1])}
        return super().get_label_info(label_id, label_tag)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        _check_uid(label_id)
        if plain_tag(label_tag) == _FINAL:
            raise HTTPException(405, "Final labels belong to the DICOM store: delete the SEG series there")
        super().remove_label(label_id, label_tag)

    def _label(self, label_id: str, tag: str) -> tuple[str, DataModel]:
        """The image of a label and what is noted of it; an image's final label is its newest SEG, fetched if needed.

        Args:
            label_id: the image's series, or that of a final label's SEG.
            tag: ``final`` or another.
        """
        if plain_tag(tag) != _FINAL:
            _check_uid(label_id)
            return super()._label(label_id, tag)
        seg = self._final(label_id)
        self.get_image_uri(seg.image)
        if not self._is_cached(seg):
            self._put_label(seg.image, _FINAL, self._read(seg), {"SeriesInstanceUID": seg.series})
        return super()._label(seg.image, _FINAL)

    def _final(self, label_id: str) -> StoredSeg:
        _check_uid(label_id)
        newest = self.archive.newest()
        seg = newest.get(label_id) or next((s for s in newest.values() if s.series == label_id), None)
        if seg is None:
            raise HTTPException(404, f"Image {label_id} has no label {_FINAL!r}.")
        return seg

    def _is_cached(self, seg: StoredSeg) -> bool:
        cached = self._datastore.label(seg.image, _FINAL)
        return bool(cached and cached.info.get("SeriesInstanceUID") == seg.series and "models" in cached.info)

    def _read(self, seg: StoredSeg) -> CheckedLabel:
        """A SEG of the store as class numbers of the models that know the most of its segments."""
        grid = self._grid(seg.image)
        numbers, models = known_segments(seg.segments, fitting_models(self.models, grid))
        if not models:
            raise HTTPException(422, f"Segmentation {seg.series}: no model for {grid.rank}-D images has its classes")
        with tempfile.TemporaryDirectory() as work:
            self.archive.download(seg.study, seg.series, Path(work))
            files = list(Path(work).iterdir())
            try:
                if len(files) != 1:
                    raise ValueError(f"it has {len(files)} instances; it must have one")
                values = read_seg(pydicom.dcmread(files[0]), grid, numbers)
            except Exception as e:  # it may come from anywhere: pydicom fails in many ways on what is no SEG
                raise HTTPException(422, f"Segmentation {seg.series} cannot be read: {e}") from e
        counts = counts_by_value(values, f"Segmentation {seg.series}")
        classes = {number: name for name, number in self.models[models[0]].labels.items() if number in counts}
        voxels = {name: counts[number] for number, name in classes.items()}
        return CheckedLabel(values, grid, Meaning({}, models, classes), voxels)

    def _publish(self, image_id: str, tag: str, checked: CheckedLabel, info: dict[str, Any]) -> dict[str, Any]:
        """A final label as a new SEG series in the store."""
        if tag != _FINAL:
            return {}
        what = f"label {tag} of {image_id}"
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "seg.dcm"
            creator = str(info.get("model") or "MONAI Label")
            self._write_seg(path, image_id, checked, what, creator)
            seg = pydicom.dcmread(path)
        self.archive.store(seg)
        return {"SeriesInstanceUID": str(seg.SeriesInstanceUID)}

    def proposal_as_seg(self, series_dir: str, label: str, label_info: list[dict[str, Any]], **_: Any) -> str:
        """The answer to ``/infer`` with ``output=dicom_seg``, in place of MONAI Label's ``nifti_to_dicom_seg``.

        MONAI Label's function names the segments by their order, so an absent class shifts all names after it.

        Args:
            series_dir: folder with the instances of the series, beside the file of its image.
            label: file of the mask.
            label_info: names the values, see :mod:`lib.labels.naming`.

        Returns:
            the SEG's file.

        Raises:
            HTTPException: 422 for an empty mask and for a value without a name.
        """
        image_id = Path(series_dir).name
        grid, what = self._grid(image_id), f"The mask of {image_id}"
        values, _ = read_label(Path(label), grid, what)
        present = [value for value in counts_by_value(values, what) if value]
        names = named_values(present, {"label_info": label_info}, what)
        if not names:
            raise HTTPException(422, f"{what}: output=dicom_seg needs the names of its values {present} in label_info.")
        with tempfile.NamedTemporaryFile(suffix=".dcm", delete=False) as file:
            path = Path(file.name)  # among the uploads, which are removed in time
        mask = CheckedLabel(values, grid, Meaning({}, (), names), {})
        self._write_seg(path, image_id, mask, what, "MONAI Label", automatic=True)
        return str(path)

    def _write_seg(
        self, path: Path, image_id: str, label: CheckedLabel, what: str, creator: str, automatic: bool = False
    ) -> None:
        if not label.values.any():
            raise HTTPException(422, f"{what}: it is empty; a DICOM segmentation needs at least one voxel.")
        folder = self._image_path(image_id)
        with refusing(folder, f"Series {image_id}"):
            files = series_files(folder)  # without what reading leaves out, such as a scout with the same UID
        try:
            write_seg(label.values, label.grid, label.meaning.classes, files, path, creator, automatic)
        except (RuntimeError, ValueError) as e:
            raise HTTPException(422, f"{what}: it cannot become a DICOM segmentation. {e}") from e


def _check_uid(uid: str) -> None:
    """UIDs become file names, so nothing else may come through."""
    if not is_uid(uid):
        raise HTTPException(400, f"{uid!r} is not a DICOM UID; give the Series Instance UID of an image")
