"""A DICOM store to attack a server with: its series, and headers that nobody means to write."""

from __future__ import annotations

import io
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import requests
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from medsaga.data import write_decathlon_phantoms

from ..integration.dicom.network import loopback_only
from ..integration.dicom.series import write_volume
from ..integration.dicom.services import ORTHANC_PLUGINS, STORE, orthanc
from .payloads import Raw, payload

__all__ = ["STORE_PATHS", "Store", "StoreMissingError", "store"]

# what persons and machines write into a series, and what its readers go by
HEADERS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientComments", "OtherPatientIDs"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "ReferringPhysicianName"),
    *("SeriesDescription", "SeriesDate", "SeriesTime", "SeriesNumber", "ProtocolName", "BodyPartExamined"),
    *("InstitutionName", "StationName", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber"),
    *("SoftwareVersions", "SequenceName", "ImageComments", "PositionReferenceIndicator", "FrameOfReferenceUID"),
)
_NEEDED = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID", "Modality", "ImageType")
_NEEDED += ("SpecificCharacterSet", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber")
_NEEDED += ("RescaleSlope", "WindowCenter", "Rows", "BitsStored", "PhotometricInterpretation", "NumberOfFrames")
SEGMENT = ("SegmentLabel", "SegmentDescription", "SegmentAlgorithmName", "SegmentAlgorithmType", "SegmentNumber")
SEGMENT += ("ContentLabel", "ContentDescription", "ContentCreatorName", "ContentDate", "SegmentationType")
STORE_PATHS = (
    *("../system", "../../system", "studies/../../system", "..%2fsystem", "studies/..%2f..%2fsystem", "../instances"),
    *("%2e%2e/system", "studies/%2e%2e/%2e%2e/tools/find", "../tools/execute-script", "../changes", "studies#x"),
    *("@127.0.0.1/studies", "studies?limit=1", "studies//../../system", "studies/1.2\\..\\..\\system"),
    *("//127.0.0.1:8042/system", "http://127.0.0.1:8042/system"),
)


class StoreMissingError(RuntimeError):
    """Orthanc is not installed."""


class Store:
    """Orthanc with series of phantoms.

    Args:
        folder: for files.
        url: DICOMweb root.
        mark: name of the file that an expression would write.
        rng: chooses.

    Attributes:
        labels: folder of the right labels, by series.
        guarded: series whose instances and labels must survive.
        spare: others, whose headers hold payloads.
        tried: headers of spare series that held an expression.
        fields: parts of a request that adds to the store.
    """

    fields = (*HEADERS, *_NEEDED, *SEGMENT)

    def __init__(self, folder: Path, url: str, mark: str, rng: np.random.Generator) -> None:
        self.folder, self.url, self.mark, self.rng = folder, url, mark, rng
        self.labels = folder / "labels"
        self.labels.mkdir(parents=True)
        self.phantoms = write_decathlon_phantoms(folder / "phantoms", cases=4, shape=(24, 32, 12))
        self.tried: set[str] = set()
        self.seg = b""
        self._known: dict[str, str] = {}
        self._uids = self._turn = 0
        self._fresh: list[Dataset] = []
        self.guarded = [self._add(n) for n in range(2)]
        self.slices = self._series(0)
        self.spare: list[str] = []
        self.paths = ["studies", "instances", "studies/1.2.3/series"]
        for name in self.guarded:
            study = self.study(name)
            self.paths += [f"studies/{study}/series", f"studies/{study}/series/{name}/metadata"]

    def study(self, series: str) -> str:
        found = requests.get(f"{self.url}/series", params={"SeriesInstanceUID": series}, timeout=30).json()
        return found[0]["0020000D"]["Value"][0]

    def refill(self) -> list[str]:
        """Add two series with an expression in every header, a SEG with expressions in its own, and three series with
        an expression or a path in one header that readers go by; returns the series' names."""
        odd = []
        for number in (2, 3):
            text = {name: payload("expression", self.rng, self.mark) for name in HEADERS}
            self.spare.append(self._add(number, text))
            self.tried |= {f"DICOM {name}" for name in HEADERS}
        text = {name: payload("expression", self.rng, self.mark) for name in (*HEADERS, *SEGMENT[:4])}
        self.tried |= {f"DICOM SEG {name}" for name in text}
        for headers in (text, {("SeriesInstanceUID", "StudyInstanceUID")[self._turn % 2]: "../../system"}):
            (seg,) = self.instances(headers, self.fresh(seg=True))
            requests.post(f"{STORE}/instances", data=seg, timeout=30).raise_for_status()
        for _ in range(3):
            keyword = _NEEDED[self._turn % len(_NEEDED)]
            kind = ("path", "expression")[self._turn // len(_NEEDED) % 2]
            value = payload(kind, self.rng, self.mark)
            if keyword == "SOPInstanceUID":  # files are named by it
                value = (f"{tempfile.gettempdir()}/{self.mark}", f"../../../../outside/{self.mark}")[kind == "path"]
            odd.append(self._add(0, {keyword: value}))
            self.tried |= {f"DICOM {keyword}"} if kind == "expression" else set()
            self._turn += 1
        del self.spare[:-6]
        return [*self.spare[-2:], *odd]

    def fresh(self, seg: bool) -> bytes:
        """A SEG, or the first slice of a series, under UIDs that the store does not know."""
        self._fresh = self._renamed([self.seg] if seg else self.slices)
        return _bytes(self._fresh[0])

    def instances(self, headers: dict[str, Any], content: bytes) -> list[bytes]:
        """All of a fresh series or SEG, with changed headers; another content as it is."""
        made = self._fresh
        if content != _bytes(made[0]):
            return [content]
        for dataset in made:
            _change(dataset, headers)
        name = self._labelled(made[0], 0)
        if made[0].get("Modality") != "SEG" and len(self.spare) < 12 and (self.labels / f"{name}.nii.gz").is_file():
            self.spare.insert(0, name)
        return [_bytes(dataset) for dataset in made]

    def changed(self) -> list[str]:
        """Instances of before that are gone or others now."""
        md5 = f"{STORE}/instances/{{}}/attachments/dicom/md5"
        with requests.Session() as session:
            instances = session.get(f"{STORE}/instances", timeout=60).json()
            now = {instance: session.get(md5.format(instance), timeout=60).text for instance in instances}
        faults = [
            "the store: an instance is another or gone" for key in self._known if now.get(key) != self._known[key]
        ]
        self._known = now
        return faults

    def take_seg(self) -> None:
        """Remember a SEG of the server's as one to be sent with other headers."""
        found = requests.post(
            f"{STORE}/tools/find", json={"Level": "Instance", "Query": {"Modality": "SEG"}}, timeout=30
        )
        self.seg = requests.get(f"{STORE}/instances/{found.json()[0]}/file", timeout=30).content

    def _add(self, number: int, headers: dict[str, Any] | None = None) -> str:
        """Put a phantom into the store, as a scanner does, and its label beside."""
        made = self._renamed(self._series(number))
        for dataset in made:
            _change(dataset, headers or {})
            requests.post(f"{STORE}/instances", data=_bytes(dataset), timeout=30).raise_for_status()
        return self._labelled(made[0], number)

    def _labelled(self, dataset: Dataset, number: int) -> str:
        """Series of a phantom, whose right label is among the labels now."""
        name = str(dataset.SeriesInstanceUID)
        if "/" not in name and len(name) < 100:  # a file of this name may be
            shutil.copy(self.phantoms / "labelsTr" / f"phantom_{number:03d}.nii.gz", self.labels / f"{name}.nii.gz")
        return name

    def _series(self, number: int) -> list[bytes]:
        folder = self.folder / f"series_{number}"
        if not folder.exists():
            folder.mkdir()
            image = nib.load(self.phantoms / "imagesTr" / f"phantom_{number:03d}.nii.gz")
            voxels = np.asarray(image.dataobj)
            write_volume(folder, np.rint(voxels / voxels.max() * 2000).astype(int).clip(0), image.affine, "MR", "P")
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    def _renamed(self, contents: list[bytes]) -> list[Dataset]:
        """Under UIDs that no other series has, the same ones for a seed; a SEG stays in the study of its image."""
        made = [pydicom.dcmread(io.BytesIO(content)) for content in contents]
        self._uids += 1
        for number, dataset in enumerate(made):
            root = f"1.2.826.0.1.3680043.10.1338.{self._uids}"
            if dataset.Modality == "SEG":  # the newest
                now = datetime.now()
                dataset.ContentDate, dataset.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
            else:
                dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = f"{root}.1", f"{root}.2"
            dataset.SeriesInstanceUID = f"{root}.3"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{root}.4.{number}"
        return made


@contextmanager
def store(folder: Path, mark: str, rng: np.random.Generator) -> Iterator[Store]:
    """Orthanc in a network of its own, which this thread is in from now on.

    Raises:
        StoreMissingError: where it is not installed.
        PermissionError: without the right to make the network.
    """
    plugin = ORTHANC_PLUGINS / "libOrthancDicomWeb.so"
    if not (shutil.which("Orthanc") and shutil.which("ip") and plugin.is_file()):
        raise StoreMissingError("Orthanc with DICOMweb, or ip, is not installed: .ci/install-viewers installs them")
    with loopback_only(), orthanc(folder / "orthanc") as url:
        yield Store(folder, url, mark, rng)


def _change(dataset: Dataset, headers: dict[str, Any]) -> None:
    for keyword, value in headers.items():
        _set(dataset, keyword, value)
        if keyword == "SOPInstanceUID":  # of each slice its own
            _set(dataset, keyword, f"{dataset.SOPInstanceUID}.{dataset.get('InstanceNumber', 1)}")


def _set(dataset: Dataset, keyword: str, value: Any) -> None:
    """Put text where it does not belong; a segment's own keywords into its first segment."""
    text = bytes(value).decode("latin-1") if isinstance(value, Raw) else value if isinstance(value, str) else str(value)
    segment = keyword in SEGMENT[:5] and dataset.get("SegmentSequence")
    if keyword in SEGMENT[:5] and not segment:
        return
    vr = dictionary_VR(tag_for_keyword(keyword))
    text = text[:60_000].replace("\\", "/") if vr == "UI" else text[:60_000]
    if vr in ("UI", "CS"):  # without a character set: bytes as they come
        text = text.encode(errors="replace").decode("latin-1").replace("\x00", "")
    text_vr = vr if vr in ("PN", "LO", "SH", "LT", "ST", "UI", "CS") else "LT"  # numbers and dates hold no such text
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        target = segment[0] if segment else dataset
        target.add_new(keyword, text_vr, text)


def _bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        dataset.save_as(stream, write_like_original=True)
    return stream.getvalue()
