"""One run of a comparison: a bundle trained and evaluated by MONAI's own command, with overlays and options."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsaga.files import write_json

__all__ = ["evaluate", "execute", "is_done", "run_logged"]


def is_done(folder: Path) -> bool:
    """Whether the folder's run has been trained and evaluated."""
    return (folder / "run.json").is_file()


def execute(
    folder: Path,
    bundle: Path,
    overlays: Sequence[Path],
    options: Mapping[str, Any],
    cache_dir: Path,
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Train and evaluate, unless that has been done with the same options. A training that was cut off goes on.

    Leaves in the folder the bundle's output (``output/``), ``model.pt``, ``log.txt`` and, when all is done,
    ``run.json`` with minutes and peak memory.

    Args:
        folder: of the run.
        bundle: folder of the bundle.
        overlays: config files that follow ``train.json``.
        options: values of config keys.
        cache_dir: for prepared slices, shared by runs.
        evaluation: further values of config keys, for the evaluation alone.

    Raises:
        RuntimeError: when the folder holds a run with other options, or a command fails.
    """
    settings = {**options, "overlays": [path.name for path in overlays]} if overlays else dict(options)
    # before the run, so that one that was cut off is not resumed with other options either
    before = folder / "options.json"
    held = json.loads(before.read_text()) if before.is_file() else None
    if held not in (None, json.loads(json.dumps(settings))):
        raise RuntimeError(
            f"{folder} holds a run with {json.dumps(held)}, not {json.dumps(settings)}: delete this folder, or "
            "choose another one with --work"
        )
    if is_done(folder):
        return
    write_json(before, settings)
    paths = {"output_dir": folder / "output", "model_path": folder / "model.pt", "cache_dir": cache_dir}
    resumed = (folder / "output" / "last.pt").is_file()
    log = folder / "log.txt"
    seconds, peak = run_logged(
        _words("training", bundle, ["train"], overlays, {**options, **paths, "resume": True}), log
    )
    evaluate(folder, bundle, overlays, {**options, **(evaluation or {})}, cache_dir)
    write_json(folder / "run.json", {"minutes": seconds / 60, "resumed": resumed, "peak_rss": peak})


def evaluate(folder: Path, bundle: Path, overlays: Sequence[Path], options: Mapping[str, Any], cache_dir: Path) -> None:
    """Score ``model.pt`` of a folder; tables and pictures are in ``output/evaluation`` then.

    Args and errors as of :func:`execute`.
    """
    paths = {"output_dir": folder / "output", "model_path": folder / "model.pt", "cache_dir": cache_dir}
    run_logged(_words("evaluating", bundle, ["train", "evaluate"], overlays, {**options, **paths}), folder / "log.txt")


def _words(
    run_id: str, bundle: Path, configs: Sequence[str], overlays: Sequence[Path], options: Mapping[str, Any]
) -> list[str]:
    files = [str(path) for path in [*(bundle / "configs" / f"{name}.json" for name in configs), *overlays]]
    words = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    return words + [word for key, value in options.items() for word in (f"--{key}", str(value))]


def run_logged(words: Sequence[str], log: Path, folder: Path | None = None) -> tuple[float, int]:
    """Run a command.

    Args:
        words: of the command.
        log: file for what it prints; added to.
        folder: to run it in; None for the working directory.

    Returns:
        its seconds, and its peak resident memory in bytes.

    Raises:
        RuntimeError: when it fails, with the end of the log.
    """
    start = time.perf_counter()
    with log.open("a") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # tells of this process alone
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(words)} failed:\n...{log.read_text()[-2000:]}\nThe whole log is {log}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
