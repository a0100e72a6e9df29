"""A bundle as the server holds it: one network and one lock, shared by all tasks that compute with it."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

from lib.model_versions import PUBLISHED, Versions
from medsaga.bundle.errors import root_cause
from medsaga.bundle.literals import literal
from medsaga.inferers import EmbeddingCache
from medsaga.networks import SamSegmenter, load_weights
from medsaga.transforms.orient_slices import ALL_PLANES, PLANES

__all__ = ["BEST", "COMPUTING", "PLANES", "ServedModel", "find_bundles", "image_key", "in_use", "mark_request"]

BEST = "best"  # of the weights that may answer prompts

# One computation at a time in this process: two at once on the same cores or GPU are slower than one after the other,
# and each would need its own memory. Requests, prefetching and scoring hold this lock for a slice or an image at a
# time.
COMPUTING = threading.RLock()

_QUIET_SECONDS = 5.0
_last_request = -_QUIET_SECONDS


def mark_request() -> None:
    """Note that somebody waits for an answer, and will probably ask for another."""
    global _last_request
    _last_request = time.monotonic()


def in_use() -> bool:
    """Whether somebody has been segmenting just now, so that work nobody waits for should wait."""
    return time.monotonic() - _last_request < _QUIET_SECONDS


_CACHE_BYTES = 512 * 2**20  # of a bundle's prepared images, and of its embeddings, that are kept in memory
_SAM_MASKS = 4  # masks that SAM's own head gives
_BOXES_ONLY = ("lite_medsam", "medsam_vit_b")  # weights trained with boxes as the only prompts
_NATIVE_SIZE = {"lite_medsam": 256}  # pixels they were trained at, where that is small enough to click fast on a CPU


def find_bundles(names: str, bundles_dir: Path) -> list[Path]:
    """Folders of the bundles to serve.

    Args:
        names: ``all``, or names in ``bundles_dir`` and paths of bundles elsewhere, separated by commas.
        bundles_dir: the repository's ``bundles``.

    Raises:
        ValueError: with the known names, when one is not a bundle.
    """
    known = {p.parent.parent.name: p.parent.parent for p in sorted(bundles_dir.glob("*/configs/inference.json"))}
    if names.strip() == "all":
        return list(known.values())
    folders = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        folder = known.get(name) or Path(name).expanduser()
        if not (folder / "configs" / "inference.json").is_file():
            raise ValueError(
                f"--conf models {name}: there is no such bundle. It must be all, one of {', '.join(known)}, or a "
                "folder with configs/inference.json, train.json and metadata.json."
            )
        folders.append(folder.resolve())
    return folders


class ServedModel:
    """One bundle: how its images are prepared, its networks, and which weights they have.

    Args:
        path: the bundle's folder.

    Raises:
        ValueError: ``inference.json`` does not say by ``plane`` whether its images are volumes, or the folder's name
            would mean something to MONAI's configs.

    Attributes:
        name: the folder's name, under which clients see the model.
        labels: class number by name, without the background.
        dimension: of the images, 2 or 3; the network itself always works on slices.
        plane: in which prompts see volumes: the bundle's, ``auto`` for one that cuts in all; None where images are 2-D.
        pretrained: published weights or file that training starts from, None for none.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.config = ConfigParser()
        config = self.path / "configs" / "inference.json"
        self.config.read_config(str(config))
        if "plane" not in self.config:
            raise ValueError(
                f"{config}: the key plane is missing; it must be auto for volumes and null for 2-D images, as in the "
                "bundles of this repository."
            )
        self.config["bundle_root"] = literal(str(self.path), f"{self.name}: its folder")
        self.metadata = json.loads((self.path / "configs" / "metadata.json").read_text())
        channels = self.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        self.labels = {name: int(index) for index, name in channels.items() if int(index) > 0}
        self.num_classes = len(self.labels) + 1
        self.image_size = int(self.config.get_parsed_content("image_size"))
        self.pretrained = json.loads((self.path / "configs" / "train.json").read_text()).get("weights")
        plane: str | None = self.config.get_parsed_content("plane")
        self.plane = "auto" if plane == ALL_PLANES else plane
        self.dimension = 2 if self.plane is None else 3
        self._preprocessing: dict[str | None, Compose] = {}
        self.preprocessing()
        self.embeddings = EmbeddingCache(_CACHE_BYTES)
        self._images = EmbeddingCache(_CACHE_BYTES)
        self._networks: OrderedDict[tuple[str, str], SamSegmenter] = OrderedDict()

    # --- weights ----------------------------------------------------------------------------------------------------

    @property
    def models_dir(self) -> Path:
        """Folder of the weights that may be served, and of nothing else."""
        return self.path / "models"

    def checkpoint(self, filename: str | None = None) -> Path:
        """Path of the weights to use: the served ones, or another version by its file name.

        Raises:
            HTTPException: 404 when there are none of this name, 409 when nothing has been trained yet.
        """
        if not filename or filename == "model.pt":
            path = self.models_dir / "model.pt"
            if not path.is_file():
                raise HTTPException(
                    409,
                    f"{self.name} has no trained model yet: submit labels and train (Update Model, or POST "
                    f"/train/{self.name}), or put weights of the bundle into its folder as models/model.pt. "
                    f"{self.name}_prompt works without.",
                )
            return path
        known = self.versions()
        if filename not in known:
            raise HTTPException(
                404, f"{self.name} has no weights {filename!r}; known are {', '.join(known) or 'none'}."
            )
        return self.models_dir / filename

    def versions(self) -> list[str]:
        """File names of all weights that may be chosen, the served ones (``model.pt``) first."""
        return sorted((p.name for p in self.models_dir.glob("*.pt")), key=lambda n: (n != "model.pt", n))

    @property
    def trained(self) -> bool:
        """Whether there are weights of the bundle's own classes."""
        return (self.models_dir / "model.pt").is_file()

    def version(self, filename: str | None = None) -> str:
        """Names the weights, for caches: changes whenever others are served."""
        path = self.checkpoint(filename)
        return f"{path.name}@{path.stat().st_mtime_ns}"

    def prompt_weights(self, asked: str | None = None) -> str:
        """Which weights answer prompts: the name of a file in ``models``, or ``published``.

        Args:
            asked: name of the weights that were asked for. ``best`` and None take the published ones if there are no
                others, or if the served version follows prompts worse than they do, see
                :attr:`~lib.model_versions.Version.follows_prompts`.
        """
        if not self.trained:
            return PUBLISHED
        if asked and asked != BEST:
            return asked
        served = Versions(self.models_dir).served()
        worse = served is not None and not served.follows_prompts and self.pretrained is not None
        return PUBLISHED if worse else "model.pt"

    def known_as(self, weights: str) -> str:
        """The name under which people know weights: for the served ones, ``model.pt``, the name of their version."""
        served = Versions(self.models_dir).served() if weights == "model.pt" else None
        return served.file if served else weights

    def network(self, device: str = "cpu", filename: str | None = None) -> SamSegmenter:
        """The network with the served weights, or another version's, in ``eval()``.

        Raises:
            HTTPException: no such weights, or they do not fit the bundle (500): nothing else is served in their place.
        """
        return self._loaded((self.version(filename), device), {}, self.checkpoint(filename))

    def sam_network(self, device: str = "cpu") -> SamSegmenter:
        """The network with published weights and SAM's own head, whose first mask is what prompts point at.

        Raises:
            HTTPException: 409 when the bundle names no weights to start from or they cannot be had.
        """
        if self.pretrained is None:
            raise HTTPException(409, f"{self.name} has no weights to start from (train.json, weights): train it first.")
        size = _NATIVE_SIZE.get(self.pretrained, self.image_size)
        return self._loaded(("pretrained", device), {"num_classes": _SAM_MASKS, "image_size": size}, self.pretrained)

    @property
    def sam_head(self) -> str:
        """What the published weights' masks are, see :class:`~medsaga.inferers.PromptedSlices`."""
        return "sam_boxes" if self.pretrained in _BOXES_ONLY else "sam"

    def _loaded(self, key: tuple[str, str], changes: dict[str, Any], weights: str | Path) -> SamSegmenter:
        """The network of a key: which weights, and the device."""
        with COMPUTING:
            if key not in self._networks:
                while len(self._networks) > 1:  # the served and one other
                    self._networks.popitem(last=False)
                config = ConfigParser({**self.config.config, "network_def": dict(self.config["network_def"])})
                for name, value in changes.items():
                    config["network_def"][name] = value
                config["network_def"]["weights"] = None
                try:
                    network = config.get_parsed_content("network_def")
                    load_weights(network, weights, trained=weights != self.pretrained)
                except Exception as err:
                    cause = root_cause(err)
                    status = 409 if weights == self.pretrained else 500
                    raise HTTPException(status, f"{self.name}: cannot use its weights. {cause}") from err
                self._networks[key] = network.to(key[1]).eval()
            self._networks.move_to_end(key)
            return self._networks[key]

    def free_memory(self) -> None:
        """Give up networks and caches, as after running out of GPU memory."""
        with COMPUTING:
            self._networks.clear()
            self.embeddings.clear()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # --- images -----------------------------------------------------------------------------------------------------

    def preprocessing(self, plane: str | None = None) -> Compose:
        """The bundle's preprocessing, one object for each plane, because the one that prepared an image can invert it.

        Args:
            plane: of the slices, one of :data:`PLANES`; the bundle's own unless given.

        Raises:
            HTTPException: 422 for a plane where the bundle's images are 2-D.
        """
        plane = plane or self.plane
        if plane != self.plane and (self.plane is None or plane not in PLANES):
            raise HTTPException(
                422,
                f"plane is {plane!r}; it must be one of {', '.join(PLANES)} for volumes, and left out for 2-D images.",
            )
        if plane not in self._preprocessing:
            config = ConfigParser({**self.config.config, "plane": plane})
            self._preprocessing[plane] = config.get_parsed_content("preprocessing")
        return self._preprocessing[plane]

    def prepare(self, image: str, plane: str | None = None) -> MetaTensor:
        """A preprocessed image (C, H, W) or volume (C, H, W, D) with its affine and original affine, from memory where
        it was used lately.

        Args:
            image: file or DICOM folder.
            plane: of the slices; the bundle's own unless given.

        Raises:
            HTTPException: 422, naming the file, when it cannot be read or used, and for a plane of a 2-D image.
        """
        preprocessing = self.preprocessing(plane)
        key = (image_key(image), plane or self.plane)
        try:
            return self._images.get(key, lambda: preprocessing({"image": image})["image"])
        except Exception as err:
            name, cause = Path(image).name, str(root_cause(err))
            cause = cause.replace(f"{Path(image).parent}/", "")  # of the image, and of its sequences beside it
            raise HTTPException(422, f"{name} cannot be segmented. {cause}") from err


def image_key(image: str) -> str:
    """Names a file's content, for caches."""
    stat = os.stat(image)
    return f"{image}@{stat.st_mtime_ns}@{stat.st_size}"
