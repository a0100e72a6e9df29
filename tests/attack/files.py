"""Files that damage, fill or lead out of a server that takes them at their word."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..reading.malformed import damaged, good_files

__all__ = ["Files"]

_NAMES = (
    *("a.nii.gz", ".nii.gz", ".nii", "a.png", "a.dcm", "a.nrrd", "a.bin", "a.pt", "a.zip", "a.tar.gz", "a", "", "a.py"),
    *("../../outside/{mark}.nii.gz", "/tmp/{mark}.nii.gz", "..\\..\\{mark}.nii", "meta.info", ".", "..", "a.nii\x00"),
    *("$__import__('pathlib').Path('{mark}').write_text('x').nii.gz", "@a.nii.gz", "%a.nii.gz", "{{a}}.nii"),
    *("a" * 300 + ".nii.gz", "a." + "b" * 300, "漢字.nii.gz", "a.nii.gz/b", "x.PNG", "a..nii...gz"),
)


class _Runs:
    """What unpickling of it runs."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (open, (self.mark, "w"))


class Files:
    """Contents and names of files to upload.

    Args:
        folder: for the good files' making.
        image: a good volume of the server.
        labels: the right labels by image.
        weights: that the server may take.
        mark: name of the file that shows that a file ran code or left its place.
    """

    def __init__(self, folder: Path, image: Path, labels: dict[str, bytes], weights: bytes, mark: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.good = {**good_files(folder), "image": (".nii.gz", image.read_bytes())}
        self.labels, self.weights = labels, weights
        self.mark = mark
        self._bombs: dict[str, Callable[[], tuple[str, bytes]]] = {
            "zip bomb": self._zip_bomb,
            "zip traversal": self._zip_traversal,
            "tar traversal": lambda: self._tar(f"../../outside/{mark}"),
            "tar absolute": lambda: self._tar(f"/tmp/{mark}"),
            "tar link": self._tar_link,
            "tar device": self._tar_device,
            "gzip bomb": lambda: (".nii.gz", gzip.compress(bytes(300_000_000), 1)),
            "nifti header bomb": self._nifti_bomb,
            "png header bomb": self._png_bomb,
            "pickle": lambda: (".pt", pickle.dumps(_Runs(mark))),
            "pickle in zip": self._torch_pickle,
            "cut pickle": lambda: (".pt", b"a."),
            "npy": lambda: (".npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"),
            "empty": lambda: (".nii.gz", b""),
            "one byte": lambda: (".nii.gz", b"\x1f"),
        }
        self._made: dict[str, tuple[str, bytes]] = {}

    def choose(self, rng: np.random.Generator, suffix: str, good: bytes) -> tuple[str, str, bytes]:
        """Kind, suffix and content of a file that is not to be taken.

        Args:
            rng: chooses.
            suffix: of what the field takes.
            good: what the field takes, of which some are damaged.
        """
        if rng.random() < 0.5:
            if rng.random() < 0.5:
                return "damaged", suffix, damaged(suffix[1:], good, rng)
            kind = list(self.good)[rng.integers(len(self.good))]
            suffix, raw = self.good[kind]
            return f"damaged {kind}", suffix, damaged("nii.gz" if kind == "image" else kind, raw, rng)
        kind = list(self._bombs)[rng.integers(len(self._bombs))]
        if kind not in self._made:
            self._made[kind] = self._bombs[kind]()
        return kind, *self._made[kind]

    def name(self, rng: np.random.Generator) -> str:
        """A name that no file has."""
        return _NAMES[rng.integers(len(_NAMES))].replace("{mark}", self.mark)

    def _zip_bomb(self) -> tuple[str, bytes]:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(8):
                archive.writestr(f"{number}.dcm", bytes(100_000_000))
        return ".zip", stream.getvalue()

    def _zip_traversal(self) -> tuple[str, bytes]:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in (f"../../outside/{self.mark}", f"/tmp/{self.mark}", f"..\\{self.mark}", "a/../../../x"):
                archive.writestr(name, b"x")
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        return ".zip", stream.getvalue()

    def _tar(self, name: str) -> tuple[str, bytes]:
        return self._tar_of([(tarfile.TarInfo(name), b"x")])

    def _tar_link(self) -> tuple[str, bytes]:
        link, through = tarfile.TarInfo("link"), tarfile.TarInfo(f"link/{self.mark}")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../outside"
        file = tarfile.TarInfo("a.nii.gz")
        file.type, file.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return self._tar_of([(link, b""), (through, b"x"), (file, b"")])

    def _tar_device(self) -> tuple[str, bytes]:
        device, pipe = tarfile.TarInfo("zero"), tarfile.TarInfo("a.nii.gz")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
        pipe.type = tarfile.FIFOTYPE
        return self._tar_of([(device, b""), (pipe, b"")])

    @staticmethod
    def _tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> tuple[str, bytes]:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for member, content in members:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return ".tar.gz", stream.getvalue()

    def _nifti_bomb(self) -> tuple[str, bytes]:
        raw = bytearray(gzip.decompress(self.good["image"][1])[:400])
        struct.pack_into("<8h", raw, 40, 3, 20_000, 20_000, 20_000, 1, 1, 1, 1)
        return ".nii.gz", gzip.compress(bytes(raw))

    def _png_bomb(self) -> tuple[str, bytes]:
        raw = bytearray(self.good["png"][1])
        struct.pack_into(">II", raw, 16, 60_000, 60_000)
        struct.pack_into(">I", raw, 29, zlib.crc32(raw[12:29]))
        return ".png", bytes(raw)

    def _torch_pickle(self) -> tuple[str, bytes]:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(_Runs(self.mark)))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
        return ".pt", stream.getvalue()
