"""A bundle as the checks see it: files read once, the network built once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import _get_fake_spatial_shape

from .findings import SkippedError

__all__ = ["Bundle"]

_SUFFIXES = (".json", ".yaml", ".yml")
# keys of this package's bundles, for checks that do not apply to other bundles
_OWN = ("class_names", "channel_names", "image_size", "plane")


@dataclass
class Bundle:
    """A bundle that is checked.

    Args:
        root: its folder.
        published: whether it is handed on to others; then it must not contain data of this machine or of patients.
        source: folder that it was made from, with the ``dataset.json`` of the training; None for the bundle itself.
        run: whether to build the network and load weights, which evaluates expressions of the configs.
    """

    root: Path
    published: bool = False
    source: Path | None = None
    run: bool = True

    @cached_property
    def name(self) -> str:
        return self.root.resolve().name

    @cached_property
    def metadata(self) -> dict[str, Any]:
        path = self.root / "configs" / "metadata.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path} must hold a JSON object.")
        return content

    @cached_property
    def dataset(self) -> dict[str, Any] | None:
        """What the bundle's files are written from (``dataset.json``); None where there is none."""
        path = (self.source or self.root) / "dataset.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @cached_property
    def configs(self) -> dict[str, Path]:
        """The configs' files by name, without ``metadata`` and a ``split`` by patients."""
        files = sorted(p for p in (self.root / "configs").glob("*") if p.suffix in _SUFFIXES)
        return {path.stem: path for path in files if path.stem not in ("metadata", "split")}

    def config(self, name: str) -> dict[str, Any]:
        """The content of a config.

        Raises:
            SkippedError: there is none of that name.
        """
        if name not in self.configs:
            raise SkippedError(f"there is no configs/{name}.json")
        return ConfigParser.load_config_file(str(self.configs[name]))

    def parser(self, *names: str) -> ConfigParser:
        """MONAI's parser of some configs, of which later ones override earlier ones; it has evaluated nothing."""
        for name in names:
            self.config(name)
        parser = ConfigParser()
        parser.read_config([str(self.configs[name]) for name in names])
        if (meta := self.root / "configs" / "metadata.json").is_file():
            parser.read_meta(str(meta))
        parser["bundle_root"] = str(self.root)
        return parser

    @cached_property
    def own(self) -> bool:
        """Whether it is a bundle of this package."""
        return any(key in self.config(name) for name in ("inference", "train") if name in self.configs for key in _OWN)

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network as ``inference.json`` (or ``train.json``) builds it, with fresh weights."""
        self.needs_run()
        names = [name for name in ("inference", "train") if name in self.configs]
        if not names:
            raise SkippedError("there is neither configs/inference.json nor configs/train.json")
        parser = self.parser(names[0])
        key = "network_def" if "network_def" in parser else "network"
        parser["device"] = "cpu"
        if names[0] == "train" and "weights" in parser:
            parser["weights"] = None  # nothing is downloaded
        return parser.get_parsed_content(key).cpu().eval()

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The state dict in ``models/model.pt``."""
        from medsaga.checkpoints import read_checkpoint
        from medsaga.networks.checkpoint_files import find_state

        path = self.root / "models" / "model.pt"
        return find_state(read_checkpoint(path), list(self.network.state_dict()), path)

    @cached_property
    def example(self) -> torch.Tensor:
        """An input of noise as ``metadata.json`` describes it, of two images."""
        image = next(iter(self.metadata["network_data_format"]["inputs"].values()))
        shape = _get_fake_spatial_shape(tuple(image["spatial_shape"]), p=1, n=1, any=1)
        random = torch.Generator().manual_seed(0)
        return torch.rand(2, image["num_channels"], *shape, generator=random)

    @cached_property
    def trained_output(self) -> torch.Tensor:
        """Output of the network with the bundle's weights for the example."""
        if not (self.root / "models" / "model.pt").is_file():
            raise SkippedError("there is no models/model.pt to compare with")
        self.network.load_state_dict(self.weights)
        with torch.no_grad():
            return self.network(self.example)

    def needs_run(self) -> None:
        """
        Raises:
            SkippedError: nothing of the bundle is to be run.
        """
        if not self.run:
            raise SkippedError("the bundle's code and configs are not run (--no-run)")
