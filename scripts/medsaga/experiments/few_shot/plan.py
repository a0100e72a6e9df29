"""What an experiment's JSON asks for, as a list of runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from medsaga.bundle import find_bundle

__all__ = ["Experiment", "Run", "read_experiment"]

_KEYS = {"title", "note", "methods", "options", "grids", "loss_curves", "pictures"}
_GRID_KEYS = {"bundle", "methods", "num_images", "seeds", "options"}


@dataclass(frozen=True)
class Run:
    """One training and evaluation."""

    bundle: str
    method: str
    num_images: int
    seed: int
    overlays: tuple[Path, ...] = field(compare=False)
    options: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        """Its folder below that of the experiment."""
        method = re.sub(r"[^a-z0-9]+", "_", self.method.lower()).strip("_")
        return f"{self.bundle}/{method}_n{self.num_images}_seed{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """Runs, and what to show of them.

    Args:
        title: heading of its page.
        methods: names, in the order of tables.
        runs: in the order of their execution: seed by seed, so that what is there when it is stopped can be compared.
        loss_curves: methods whose losses are drawn.
        pictures: methods whose best, median and worst cases are drawn; ranked by the first.
        note: what a reader of the page has to know besides.
    """

    title: str
    methods: tuple[str, ...]
    runs: tuple[Run, ...]
    loss_curves: tuple[str, ...]
    pictures: tuple[str, ...]
    note: str


def read_experiment(path: str | Path) -> Experiment:
    """Read and check an experiment.

    Its keys: ``title``; ``methods``, by name an object with ``overlays`` (files of ``bundles/methods``) and ``options``
    (values of config keys), both optional; ``grids``, a list of objects with ``bundle``, ``methods`` (names; all
    unless given), ``num_images`` (numbers of training slices), ``seeds`` and ``options``; ``options`` for all runs;
    ``loss_curves`` and ``pictures``, names of methods; ``note``, a sentence for the page. A method's options come
    before a grid's, a grid's before those for all.

    Args:
        path: of the JSON file.

    Raises:
        FileNotFoundError: the file, a bundle or an overlay does not exist.
        ValueError: naming the file and the key, when something is missing or unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: it must be the JSON file of an experiment.")
    try:
        content = json.loads(path.read_text())
        title, methods, grids = content["title"], content["methods"], content["grids"]
    except (ValueError, TypeError) as err:
        raise ValueError(f"{path} is not a JSON object ({err}).") from err
    except KeyError as err:
        raise ValueError(f"{path} has no key {err}; an experiment must have title, methods and grids.") from err
    _check_keys(content, _KEYS, str(path))
    known = set(methods)
    runs: dict[Run, None] = {}
    for number, grid in enumerate(grids):
        where = f"{path}, grids[{number}]"
        _check_keys(grid, _GRID_KEYS, where)
        if missing := {"bundle", "num_images", "seeds"} - set(grid):
            raise ValueError(f"{where} lacks {', '.join(sorted(missing))}.")
        names = grid.get("methods", list(methods))
        _check_methods(names, known, f"{where}, methods")
        folder = Path(find_bundle(grid["bundle"]))
        for seed, images, name in product(grid["seeds"], grid["num_images"], names):
            method = methods[name]
            overlays = tuple(folder.parent / "methods" / file for file in method.get("overlays", []))
            for overlay in overlays:
                if not overlay.is_file():
                    raise FileNotFoundError(f"{path}, methods[{name!r}]: {overlay} does not exist.")
            options = {
                **content.get("options", {}),
                **grid.get("options", {}),
                **method.get("options", {}),
                "num_slices": images,
                "seed": seed,
            }
            runs.setdefault(Run(grid["bundle"], name, images, seed, overlays, options))
    shown = {key: tuple(content.get(key, [])) for key in ("loss_curves", "pictures")}
    for key, names in shown.items():
        _check_methods(names, known, f"{path}, {key}")
    ordered = sorted(runs, key=lambda run: run.seed)
    return Experiment(title, tuple(methods), tuple(ordered), **shown, note=content.get("note", ""))


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    if extra := set(given) - known:
        raise ValueError(
            f"{where} has unknown keys {', '.join(sorted(extra))}; the keys are {', '.join(sorted(known))}."
        )


def _check_methods(names: list[str] | tuple[str, ...], known: set[str], where: str) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{where}: there is no method {', '.join(unknown)}; the methods are {', '.join(sorted(known))}."
        )
