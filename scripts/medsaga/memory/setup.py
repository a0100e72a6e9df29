"""What a bundle trains with: its config, overlays and overrides, as the training command reads them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

__all__ = ["Setup"]


@dataclass(frozen=True)
class Setup:
    """A bundle's training config, with overlays and overrides.

    Args:
        bundle: the bundle's folder.
        overlays: config files laid over its ``configs/train.json``, in this order.
        overrides: values by key, as ``python -m monai.bundle`` takes them.
    """

    bundle: str
    overlays: tuple[str, ...] = ()
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The config files that the training command is given."""
        return [str(Path(self.bundle) / "configs" / "train.json"), *self.overlays]

    def override(self, values: dict[str, Any]) -> Setup:
        """The same setup with further overrides."""
        return replace(self, overrides={**self.overrides, **values})

    def parser(self) -> ConfigParser:
        """Read the config.

        Returns:
            MONAI's parser, which has built nothing yet.

        Raises:
            FileNotFoundError: when a config file does not exist.
            KeyError: when an override's key is not in the config.
            ValueError: when a config file is not JSON.
        """
        for file in self.files:
            if not Path(file).is_file():
                raise FileNotFoundError(f"there is no config file {file}")
            try:
                ConfigParser.load_config_file(file)
            except ValueError as err:
                raise ValueError(f"{file} cannot be read as JSON: {err}") from err
        parser = ConfigParser(ConfigParser.load_config_files(self.files))
        for key, value in self.overrides.items():
            if key not in parser:
                raise KeyError(f"there is no key {key!r} in {', '.join(self.files)}")
            parser[key] = value
        return parser
