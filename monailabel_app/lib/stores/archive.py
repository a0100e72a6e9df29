"""What a DICOM store has, asked for over DICOMweb, and how it is fetched."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.utils.dicom import dicom_web_download_series
from pydicom.dataset import Dataset

from lib.labels.naming import known_segments
from lib.served_model import ServedModel
from medsaga.dicom_seg import segment_names

__all__ = ["Archive", "StoredSeg", "is_uid", "search_filter"]

logger = logging.getLogger(__name__)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LISTING_SECONDS = 5.0  # for which a listing of the DICOM store is believed: /info is asked for before each inference


def search_filter() -> dict[str, Any]:
    """``MONAI_LABEL_DICOMWEB_SEARCH_FILTER`` where it is set, else CT, MR and X-rays (its default is CT alone)."""
    if "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" in settings.model_fields_set:
        return settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    return {"Modality": ["CT", "MR", "CR", "DX"]}


@dataclass(frozen=True)
class StoredSeg:
    """A SEG series of the store: what it refers to, and when its content was made."""

    study: str
    series: str
    image: str
    made: str
    segments: tuple[str, ...]


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID; a store keeps what it is sent, and UIDs become parts of addresses and files."""
    return len(text) <= 64 and bool(_UID.fullmatch(text))


def _parsed_seg(study: str, series: str, instance: dict[str, Any]) -> StoredSeg | None:
    """A SEG by the metadata of its instance; None where it refers to no series."""
    meta = Dataset.from_json(instance, bulk_data_uri_handler=lambda uri: None)  # without the pixels
    references = meta.get("ReferencedSeriesSequence")
    if not references:
        return None
    made = "".join(
        str(meta.get(day) or "") + str(meta.get(hour) or "")
        for day, hour in [("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime")]
    )
    names = tuple(segment_names(meta).values())
    return StoredSeg(study, series, str(references[0].SeriesInstanceUID), made, names)


def _listed(item: dict[str, Any]) -> Dataset | None:
    """A series of a listing; None for one that cannot be read, or whose UIDs are invalid."""
    try:
        series = Dataset.from_json(item)
        return series if is_uid(str(series.SeriesInstanceUID)) and is_uid(str(series.StudyInstanceUID)) else None
    except Exception:  # pydicom fails in many ways on what a store may have been sent
        return None


class _CheckedInstances:
    """A client that checks UIDs, for MONAI Label's download, which names files by the UIDs that it receives."""

    def __init__(self, client: DICOMwebClient) -> None:
        self._client = client
        self.retrieve_instance_frames = client.retrieve_instance_frames

    def retrieve_series(self, *uids: str) -> list[Dataset]:
        instances = self._client.retrieve_series(*uids)
        for instance in instances:
            _check_instance(str(instance.get("SOPInstanceUID")))
        return instances

    def retrieve_series_metadata(self, *uids: str) -> list[dict[str, Any]]:
        instances = self._client.retrieve_series_metadata(*uids)
        for instance in instances:
            uid = {key: value for key, value in instance.items() if key == "00080018"}  # SOP Instance UID
            _check_instance(str(Dataset.from_json(uid).get("SOPInstanceUID")))
        return instances


def _check_instance(uid: str) -> None:
    if not is_uid(uid):
        raise HTTPException(422, f"The series has an instance {uid[:100]!a}; that is not a DICOM UID")


class Archive:
    """A DICOM store.

    Args:
        client: of the DICOM store.
        search_filter: QIDO-RS attributes of the series to list. A list of values is asked for one by one.
        models: served models by name, whose classes make a SEG a label.
        fetch_by_frame: fetch metadata and frames instead of instances, for stores that offer only those.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        search_filter: dict[str, Any],
        models: Mapping[str, ServedModel],
        fetch_by_frame: bool = False,
    ) -> None:
        logging.getLogger("dicomweb_client").setLevel(logging.WARNING)  # it logs each request to the store
        self._client = client
        self._search_filter = search_filter
        self._models = models
        self._fetch_by_frame = fetch_by_frame
        self._listings: dict[str, tuple[float, list[Dataset]]] = {}
        self._segs: dict[str, StoredSeg | None] = {}

    def images(self) -> list[str]:
        """Series Instance UIDs of the images."""
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

    def newest(self) -> dict[str, StoredSeg]:
        """Newest SEG with a known class of each listed image."""
        images = set(self.images())
        newest: dict[str, StoredSeg] = {}
        for found in self._search({"Modality": "SEG"}):
            seg = self._seg(str(found.StudyInstanceUID), str(found.SeriesInstanceUID))
            if seg and seg.image in images and (seg.image not in newest or newest[seg.image].made < seg.made):
                newest[seg.image] = seg
        return newest

    def series(self, uid: str) -> Dataset:
        """What is known of an image's series.

        Raises:
            HTTPException: 404 where there is none, 400 for a segmentation.
        """
        found = [s for s in self._search({"SeriesInstanceUID": uid}) if str(s.SeriesInstanceUID) == uid]
        if not found:
            raise HTTPException(404, f"The DICOM store has no series {uid}")
        if str(found[0].get("Modality", "")) == "SEG":
            raise HTTPException(400, f"Series {uid} is a segmentation, not an image")
        return found[0]

    def fetch(self, series: str, folder: Path) -> None:
        """Download a series whole or not at all."""
        info = self.series(series)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
        try:
            self.download(str(info.StudyInstanceUID), series, part)
            if not any(part.iterdir()):
                raise HTTPException(502, f"The DICOM store lists series {series} but returns no instances of it")
            if not folder.is_dir():  # another process may have been faster
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def download(self, study: str, series: str, folder: Path) -> None:
        """Download a series' instances into a folder.

        Raises:
            HTTPException: 422 for an instance with an invalid UID, because it would become the name of a file; 502.
        """
        checked = _CheckedInstances(self._client)
        try:
            dicom_web_download_series(study, series, str(folder), checked, self._fetch_by_frame)
        except requests.RequestException as e:
            raise HTTPException(502, f"The DICOM store at {self._client.base_url} does not send the series: {e}") from e

    def store(self, instance: pydicom.Dataset) -> None:
        """Send a new instance; listings are asked for anew."""
        answer = self._ask("store_instances", [instance])
        if answer.get("FailedSOPSequence"):
            raise HTTPException(502, f"The DICOM store refuses the segmentation: {answer.FailedSOPSequence}")
        self.forget_listings()

    def forget_listings(self) -> None:
        """Ask for listings anew."""
        self._listings.clear()

    def _seg(self, study: str, series: str) -> StoredSeg | None:
        """What a SEG series refers to; None where it is no label of this app. Asked for once: series do not change."""
        if series not in self._segs:
            instances = self._ask("retrieve_series_metadata", study, series)
            try:
                seg = _parsed_seg(study, series, instances[0])
                known = seg and known_segments(seg.segments, self._models)[1]
            except Exception as err:  # pydicom fails in many ways on what a store may have been sent
                logger.warning("SEG %s cannot be read, so it is not used as a label (%s)", series, err)
                seg, known = None, ()
            if seg and not known:
                logger.info(
                    "SEG %s is not used as a label: no model has its segments (%s)",
                    series,
                    ", ".join(seg.segments) or "none",
                )
            self._segs[series] = seg if known else None
        return self._segs[series]

    def _search(self, query: dict[str, Any]) -> list[Dataset]:
        """Series that match, page by page; believed for some seconds."""
        key = repr(sorted(query.items()))
        asked, found = self._listings.get(key, (0.0, []))
        if asked and time.monotonic() - asked < _LISTING_SECONDS:
            return found
        series: dict[str, dict[str, Any]] = {}
        while True:
            page = self._ask("search_for_series", search_filters=query, offset=len(series) or None)
            new = {str(item.get("0020000E")): item for item in page}  # Series Instance UID
            if new.keys() <= series.keys():  # also where a store knows no offset and repeats itself
                break
            series.update(new)
        found = [listed for item in series.values() if (listed := _listed(item)) is not None]
        if left_out := len(series) - len(found):
            logger.warning(
                "%d series of the DICOM store are left out: they cannot be read, or their UIDs are not valid", left_out
            )
        self._listings[key] = (time.monotonic(), found)
        return found

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """One request of the client, with an error that says whose fault it is."""
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except requests.HTTPError as e:
            status = e.response.status_code if e.response is not None else 0
            hint = (
                " Set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD." if status in (401, 403) else ""
            )
            raise HTTPException(502, f"The DICOM store refuses a request ({method}: {e}).{hint}") from e
        except requests.RequestException as e:
            raise HTTPException(502, f"The DICOM store at {self._client.base_url} does not answer: {e}") from e
