"""MONAI Label's DICOMweb datastore, made safe to work with.

Images are series, named by their Series Instance UID. They are fetched once into a cache folder and converted to NIfTI.
A finished label becomes a segmentation object (SEG) in the image's study; it is never overwritten, a later one is a
series of its own. The newest SEG whose segments bear names of the served labels is an image's training label, wherever
it was made.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import requests
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from medsaga.dicom_seg import label_key, read_seg, segment_names, write_seg
from medsaga.nifti import write_nifti
from medsaga.reading import Grid, ReadingError
from medsaga.reading.dicom import open_dicom, series_files
from medsaga.reading.labels import class_numbers

from .labels import counts_by_value, read_label
from .names import refusing

__all__ = ["DicomDatastore", "search_filter", "write_series"]

logger = logging.getLogger(__name__)
logging.getLogger("dicomweb_client").setLevel(logging.WARNING)  # it logs each request to the store

_LISTING_SECONDS = 5.0  # for which a listing of the DICOM store is believed: /info is asked for before each inference
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FINAL = DefaultLabelTag.FINAL.value


def search_filter() -> dict[str, Any]:
    """``MONAI_LABEL_DICOMWEB_SEARCH_FILTER`` where it is set, else CT, MR and X-rays (its default is CT alone)."""
    if "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" in settings.model_fields_set:
        return settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    return {"Modality": ["CT", "MR", "CR", "DX"]}


@dataclass(frozen=True)
class _Seg:
    """A SEG series of the store: what it refers to, and when its content was made."""

    study: str
    series: str
    image: str
    made: str
    labels: tuple[str, ...]


class DicomDatastore(DICOMWebDatastore):
    """
    Args:
        client: of the DICOM store.
        search_filter: QIDO-RS attributes of the series to list. A list of values is asked for one by one.
        cache_path: folder of the cache; None for MONAI Label's own in the home folder.
        fetch_by_frame: fetch metadata and frames instead of instances, for stores that offer only those.
        convert_to_nifti: must be True; the argument is MONAI Label's.
        labels: class number by name, of all served models.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        search_filter: dict[str, Any],
        cache_path: str | None = None,
        fetch_by_frame: bool = False,
        convert_to_nifti: bool = True,
        labels: dict[str, int] | None = None,
    ) -> None:
        if not convert_to_nifti:
            raise ValueError("MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI must be true: the bundles read NIfTI")
        self._labels = dict(labels or {})
        self._listings: dict[str, tuple[float, list[Dataset]]] = {}
        self._segs: dict[str, _Seg | None] = {}
        super().__init__(client, search_filter, cache_path, fetch_by_frame, convert_to_nifti)

    # --- what the store has -----------------------------------------------------------------------------------------

    def list_images(self) -> list[str]:
        modalities = self._search_filter.get("Modality")
        choices = modalities if isinstance(modalities, list) else [modalities]
        uids: dict[str, None] = {}
        for modality in choices:
            query = {**self._search_filter, **({"Modality": modality} if modality else {})}
            for found in self._search(query):
                # without a filter everything is listed, also what is no image
                if str(found.get("Modality", "")) not in ("SEG", "SR", "PR", "KO", "RTSTRUCT"):
                    uids[str(found.SeriesInstanceUID)] = None
        return list(uids)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return list(self._newest())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        labelled = self._newest()
        return [uid for uid in self.list_images() if uid not in labelled]

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images and their newest labels as NIfTI files, fetched where the cache lacks them."""
        pairs = []
        for image in self._newest():
            try:
                pairs.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, _FINAL)})
            except HTTPException as e:  # one unreadable series must not keep the others from training
                logger.warning("Not in the training data: series %s: %s", image, e.detail)
        return pairs

    def _newest(self) -> dict[str, _Seg]:
        """Newest SEG with a known label of each listed image."""
        images = set(self.list_images())
        newest: dict[str, _Seg] = {}
        for found in self._search({"Modality": "SEG"}):
            seg = self._seg(str(found.StudyInstanceUID), str(found.SeriesInstanceUID))
            if seg and seg.image in images and (seg.image not in newest or newest[seg.image].made < seg.made):
                newest[seg.image] = seg
        return newest

    def _seg(self, study: str, series: str) -> _Seg | None:
        """What a SEG series refers to; None where it is no label of this app. Asked for once: series do not change."""
        if series not in self._segs:
            instances = self._ask("retrieve_series_metadata", study, series)
            meta = Dataset.from_json(instances[0], bulk_data_uri_handler=lambda uri: None)  # without the pixels
            known = {label_key(name) for name in self._labels}
            names = tuple(segment_names(meta).values())
            references = meta.get("ReferencedSeriesSequence")
            made = "".join(
                str(meta.get(day) or "") + str(meta.get(hour) or "")
                for day, hour in [("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime")]
            )
            if references and known.intersection(map(label_key, names)):
                image = str(references[0].SeriesInstanceUID)
                self._segs[series] = _Seg(study, series, image, made, names)
            else:
                logger.info("SEG %s is no label of this app (segments: %s)", series, ", ".join(names) or "none")
                self._segs[series] = None
        return self._segs[series]

    def _search(self, query: dict[str, Any]) -> list[Dataset]:
        """Series that match, page by page; believed for some seconds."""
        key = repr(sorted(query.items()))
        asked, found = self._listings.get(key, (0.0, []))
        if asked and time.monotonic() - asked < _LISTING_SECONDS:
            return found
        series: dict[str, Dataset] = {}
        while True:
            page = self._ask("search_for_series", search_filters=query, offset=len(series) or None)
            new = {str(d.SeriesInstanceUID): d for d in map(Dataset.from_json, page)}
            if new.keys() <= series.keys():  # also where a store knows no offset and repeats itself
                break
            series.update(new)
        self._listings[key] = (time.monotonic(), list(series.values()))
        return list(series.values())

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One request of the client, with an error that says whose fault it is."""
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except requests.HTTPError as e:
            status = e.response.status_code if e.response is not None else 0
            hint = (
                " Set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD." if status in (401, 403) else ""
            )
            raise HTTPException(502, f"The DICOM store refuses ({method}: {e}).{hint}") from e
        except requests.RequestException as e:
            raise HTTPException(502, f"The DICOM store at {self._client.base_url} does not answer: {e}") from e

    # --- images -----------------------------------------------------------------------------------------------------

    def get_image_uri(self, image_id: str) -> str:
        """Path of the series as NIfTI; its instances lie beside it, in the folder of its name.

        Raises:
            HTTPException: 400 for what is no UID, 404 for an unknown series, 422 for one that is no regular volume.
        """
        self._check_uid(image_id)
        root = Path(self._datastore.image_path())
        folder, file = root / image_id, root / f"{image_id}.nii.gz"
        if not file.is_file() or image_id not in self._datastore.objects:
            if not folder.is_dir():
                self._fetch(image_id, folder)
            with tempfile.TemporaryDirectory() as work:
                written = Path(work) / file.name
                with refusing(folder, f"Series {image_id}"):
                    write_series(folder, written)
                LocalDatastore.add_image(self, image_id, str(written), self._dicom_info(image_id))
        return os.path.realpath(file)

    def _grid(self, image_id: str) -> Grid:
        """Of a series, from its instances; of a NIfTI file one cannot tell whether it was a projection."""
        folder = Path(self._datastore.image_path()) / image_id
        with refusing(folder, f"Series {image_id}"):
            return open_dicom(folder).grid

    def _fetch(self, series: str, folder: Path) -> None:
        """Download a series whole or not at all."""
        info = self._series(series)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            self._download(str(info.StudyInstanceUID), series, part)
            if not any(part.iterdir()):
                raise HTTPException(502, f"The DICOM store lists series {series} but returns no instances of it")
            if not folder.is_dir():  # another process may have been faster
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _download(self, study: str, series: str, folder: Path) -> None:
        try:
            dicom_web_download_series(study, series, str(folder), self._client, self._fetch_by_frame)
        except requests.RequestException as e:
            raise HTTPException(502, f"The DICOM store at {self._client.base_url} does not deliver: {e}") from e

    def _series(self, uid: str) -> Dataset:
        found = [s for s in self._search({"SeriesInstanceUID": uid}) if str(s.SeriesInstanceUID) == uid]
        if not found:
            raise HTTPException(404, f"The DICOM store has no series {uid}")
        if str(found[0].get("Modality", "")) == "SEG":
            raise HTTPException(400, f"Series {uid} is a segmentation, not an image")
        return found[0]

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise HTTPException(405, "Images come from the DICOM store: send the series there, not to this server")

    def remove_image(self, image_id: str) -> None:
        raise HTTPException(405, "Images belong to the DICOM store: delete the series there")

    # --- labels -----------------------------------------------------------------------------------------------------

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """The image's tags; ``final`` as the store has it, where labels also come and go without this server."""
        tags = [tag for tag in LocalDatastore.get_labels_by_image_id(self, image_id) if tag != _FINAL]
        return dict.fromkeys([*tags, _FINAL] if image_id in self._newest() else tags, image_id)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label as NIfTI on the image's grid, '' for none. An image's final label is its newest SEG.

        Args:
            label_id: the image's series, or that of a final label's SEG.
            label_tag: ``final`` or another tag, whose labels are only in the cache.
            image_id: the image's series; MONAI Label's own datastore asks for it.
        """
        self._check_uid(label_id)
        self._check_tag(label_tag)
        if label_tag != _FINAL:
            return LocalDatastore.get_label_uri(self, label_id, label_tag)
        newest = self._newest()
        seg = newest.get(image_id or label_id) or next((s for s in newest.values() if s.series == label_id), None)
        if seg is None:
            return ""
        self.get_image_uri(seg.image)
        cached = self._datastore.label(seg.image, _FINAL)
        if not cached or cached.info.get("SeriesInstanceUID") != seg.series:
            grid = self._grid(seg.image)
            self._cache_label(seg.image, self._read_label(seg, grid), grid, seg.series, list(seg.labels))
        return LocalDatastore.get_label_uri(self, seg.image, _FINAL)

    def _read_label(self, seg: _Seg, grid: Grid) -> np.ndarray:
        with tempfile.TemporaryDirectory() as work:
            self._download(seg.study, seg.series, Path(work))
            files = list(Path(work).iterdir())
            try:
                if len(files) != 1:
                    raise ValueError(f"it has {len(files)} instances, one is read")
                return read_seg(pydicom.dcmread(files[0]), grid, self._labels)
            except ValueError as e:
                raise HTTPException(422, f"Segmentation {seg.series} cannot be read: {e}") from e

    def _cache_label(self, image_id: str, label: np.ndarray, grid: Grid, series: str, names: list[str]) -> None:
        info = {"SeriesInstanceUID": series, "label_info": [{"name": n, "idx": self._labels.get(n)} for n in names]}
        with tempfile.TemporaryDirectory() as work:
            written = Path(work) / f"{image_id}.nii.gz"
            write_nifti(label, grid.affine, written)
            LocalDatastore.save_label(self, image_id, str(written), _FINAL, info)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Save a label map; one tagged ``final`` also as a new SEG series in the store.

        Args:
            image_id: the image's series.
            label_filename: NIfTI, NRRD, or the bare voxels (``.bin``).
            label_tag: ``final`` or another one, which stays in the cache.
            label_info: ``label_info`` names the values, as 3D Slicer sends it: the n-th entry that of value n. The
                model's ``params.label_names`` do too. Without either the served labels must be unambiguous.
            label_id: not used; MONAI Label passes it.

        Returns:
            the image's series.

        Raises:
            HTTPException: 400 and 422 for what cannot be saved, 404 for an unknown series, 502 when the store refuses.
        """
        self.get_image_uri(image_id)
        self._check_tag(label_tag)
        if label_tag != _FINAL:
            return LocalDatastore.save_label(self, image_id, label_filename, label_tag, label_info)
        grid, info = self._grid(image_id), label_info or {}
        values, names = self._named(label_filename, grid, info, image_id)
        numbers = {label_key(name): number for name, number in self._labels.items()}
        unknown = [n for n in names.values() if label_key(n) not in numbers]
        if len(unknown) == len(names):
            raise HTTPException(422, f"{', '.join(unknown)}: none is a label of this app ({', '.join(self._labels)})")
        if unknown:
            logger.warning("In the segmentation, but not in training: %s", ", ".join(unknown))
        training = np.zeros(values.shape, dtype=np.uint8)
        for value, name in names.items():
            training[values == value] = numbers.get(label_key(name), 0)
        series = self._store(values, grid, names, image_id, str(info.get("model") or "MONAI Label"))
        self._listings.clear()
        self._cache_label(image_id, training, grid, series, list(names.values()))
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        self._check_uid(label_id)
        self._check_tag(label_tag)
        if label_tag == _FINAL:
            raise HTTPException(405, "Final labels belong to the DICOM store: delete the SEG series there")
        LocalDatastore.remove_label(self, label_id, label_tag)

    def proposal_as_seg(self, series_dir: str, label: str, label_info: list[dict[str, Any]], **_: Any) -> str:
        """The answer to ``/infer`` with ``output=dicom_seg``, in place of MONAI Label's ``nifti_to_dicom_seg``.

        That one names the segments by their order, so that a class that is absent shifts all names after it.

        Args:
            series_dir: folder with the instances of the series, beside the file of its image.
            label: file of the mask.
            label_info: names the values, as for :meth:`save_label`.

        Returns:
            the SEG's file.

        Raises:
            HTTPException: 422 for an empty mask, 400 for a value without a name.
        """
        image_id = Path(series_dir).name
        grid = self._grid(image_id)
        values, names = self._named(label, grid, {"label_info": label_info}, image_id)
        with tempfile.NamedTemporaryFile(suffix=".dcm", delete=False) as file:
            path = Path(file.name)  # among the uploads, which are removed in time
        _write_seg(values, grid, names, Path(series_dir), path, "MONAI Label", automatic=True)
        return str(path)

    def _named(self, file: str, grid: Grid, info: dict[str, Any], image_id: str) -> tuple[np.ndarray, dict[int, str]]:
        """Values of a label file on the image's grid, and the name of each that occurs."""
        what = f"The label of series {image_id}"
        values, _ = read_label(Path(file), grid, what)
        if not info.get("label_info") and not (info.get("params") or {}).get("label_names"):
            with refusing(file, what):
                values, notices = class_numbers(values, max(self._labels.values(), default=0) + 1, what)
            for notice in notices:
                logger.warning(notice)
        present = [value for value in counts_by_value(values, what) if value]
        if not present:
            raise HTTPException(422, "The label is empty; a DICOM segmentation needs at least one voxel")
        return values, self._names(present, info)

    def _names(self, present: list[int], info: dict[str, Any]) -> dict[int, str]:
        """Name of each value that occurs."""
        listed = [e for e in info.get("label_info") or [] if isinstance(e, dict) and e.get("name")]
        by_place = {place: str(e["name"]) for place, e in enumerate(listed, 1)}
        by_number = {int(e["idx"]): str(e["name"]) for e in listed if str(e.get("idx", "")).isdigit()}
        # Slicer's idx also counts the segments that it leaves out, its values do not: the place is right. Others send
        # the value itself, recognised by its order or where the place does not reach.
        numbers = list(by_number)
        if len(numbers) == len(listed) and (numbers != sorted(numbers) or max(present) > len(listed)):
            names = by_number
        else:
            names = by_place
        model = (info.get("params") or {}).get("label_names") or {}
        names = names or {int(v): str(n) for n, v in model.items()}
        if not names:
            for name, value in self._labels.items():
                if value in names and value in present:
                    raise HTTPException(
                        400, f"Value {value} could be {names[value]} or {name}: name the values in label_info"
                    )
                names[value] = name
        missing = [v for v in present if v not in names]
        if missing:
            raise HTTPException(400, f"The label has values {missing} without a name; label_info names {names}")
        return {v: names[v] for v in present}

    def _store(self, label: np.ndarray, grid: Grid, names: dict[int, str], image_id: str, creator: str) -> str:
        """Upload a label map as SEG; returns its series."""
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "seg.dcm"
            series_dir = Path(self._datastore.image_path()) / image_id
            _write_seg(label, grid, names, series_dir, path, creator, automatic=False)
            seg = pydicom.dcmread(path)
            answer = self._ask("store_instances", [seg])
            if answer.get("FailedSOPSequence"):
                raise HTTPException(502, f"The DICOM store does not take the segmentation: {answer.FailedSOPSequence}")
            return str(seg.SeriesInstanceUID)

    # --- requests that are no requests ------------------------------------------------------------------------------

    @staticmethod
    def _check_uid(uid: str) -> None:
        """UIDs become file names, so nothing else may come through."""
        if len(uid) > 64 or not re.fullmatch(r"\d+(\.\d+)*", uid):
            raise HTTPException(400, f"{uid!r} is no DICOM UID; images are named by their Series Instance UID")

    @staticmethod
    def _check_tag(tag: str) -> None:
        if not _TAG.fullmatch(str(getattr(tag, "value", tag))):
            raise HTTPException(400, f"{tag!r} is no tag; use letters, digits, - and _")


def write_series(folder: Path, path: Path) -> None:
    """Write a series' instances as one NIfTI image on exactly their grid: a volume, or 2-D for a projection (X-ray).

    Args:
        folder: with the instances.
        path: of the file to write.

    Raises:
        ReadingError: they are no regular volume, with the reason.
    """
    series = open_dicom(folder)
    for notice in series.notices:
        logger.warning(notice)
    if series.grid.channels != 1:
        raise ReadingError(f"{folder}: a colour image; series of grey values are read.")
    write_nifti(series.load(), series.grid.affine, path)


def _write_seg(
    label: np.ndarray, grid: Grid, names: dict[int, str], series_dir: Path, path: Path, creator: str, automatic: bool
) -> None:
    with refusing(series_dir, f"Series {series_dir.name}"):
        files = series_files(series_dir)  # without what reading leaves out, as a scout under the same UID
    try:
        write_seg(label, grid, names, files, path, creator, automatic)
    except (RuntimeError, ValueError) as e:
        raise HTTPException(422, f"The label cannot be a DICOM segmentation: {e}") from e
