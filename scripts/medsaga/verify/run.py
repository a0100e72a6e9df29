"""All checks of a bundle, each by itself: an error of one never stops the others."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from medsaga.bundle.root import bundle_folder
from medsaga.failures import root_cause

from . import configs, files, metadata, network, privacy
from .bundle import Bundle
from .findings import Check, Finding, SkippedError

__all__ = ["CHECKS", "verify_bundle", "verify_folder"]

CHECKS: dict[str, Check] = {
    "files": files.required_files,
    "licences": files.licences,
    "large files": files.large_files,
    "metadata: MONAI's schema": metadata.schema,
    "metadata: version and changelog": metadata.version,
    "metadata: required packages": metadata.required_packages,
    "metadata: channels": metadata.data_formats,
    "metadata: of this bundle": metadata.of_this_bundle,
    "configs: references": configs.references,
    "configs: classes": configs.targets,
    "configs: keys of MONAI": configs.monai_keys,
    "configs: keys of MONAI Label": configs.monai_label_keys,
    "configs: training and inference": configs.same_in_training,
    "configs: name of the bundle": configs.own_name,
    "network: input and output": network.inputs_and_outputs,
    "network: weights load": network.weights_load,
    "network: TorchScript": network.torchscript,
    "network: ONNX": network.onnx,
    "no paths of a machine": privacy.no_machine_paths,
    "no names of patients": privacy.no_patients,
}


def verify_folder(folder: Path, published: bool = False, source: Path | None = None, run: bool = True) -> list[Finding]:
    """Check a bundle's folder.

    Args:
        folder: the bundle's.
        published: check it as a bundle that is handed on to others.
        source: folder that it was made from, whose ``dataset.json`` its metadata must agree with; None for itself.
        run: build and run the network. It evaluates what the configs say and imports the bundle's code, as MONAI does:
            not for bundles whose author you do not trust.

    Returns:
        a finding for each check.
    """
    bundle = Bundle(Path(folder), published, source, run)
    return [_finding(name, check, bundle) for name, check in CHECKS.items()]


def verify_bundle(bundle: str | Path, published: bool = False, run: bool = True) -> list[Finding]:
    """Check a bundle by name, folder or zip file; a zip file is checked as what is handed on.

    Args:
        bundle: name, folder or zip file.
        published: as in :func:`verify_folder`.
        run: as in :func:`verify_folder`.

    Raises:
        FileNotFoundError: there is no such bundle.
        ValueError: the zip file is damaged, or holds no bundle.
    """
    path = Path(bundle)
    if path.suffix != ".zip":
        folder = path if (path / "configs").is_dir() else bundle_folder(bundle)
        return verify_folder(folder, published, run=run)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    with tempfile.TemporaryDirectory(prefix="medsaga-verify-") as work:
        try:
            with zipfile.ZipFile(path) as file:
                file.extractall(work)  # which leaves no path outside of the folder
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path} is not a zip file, or is damaged ({error}): copy or download it again."
            ) from error
        tops = list(Path(work).iterdir())
        if len(tops) != 1 or not (tops[0] / "configs").is_dir():
            raise ValueError(f"{path} holds no bundle: it must hold one folder, NAME, with NAME/configs and the rest.")
        return verify_folder(tops[0], published=True, run=run)


def _finding(name: str, check: Check, bundle: Bundle) -> Finding:
    try:
        problems = tuple(check(bundle))
    except SkippedError as skipped:
        return Finding(name, "skipped", (f"{skipped}.",))
    except Exception as error:  # of a broken bundle, anything
        cause = root_cause(error)
        return Finding(name, "failed", (f"{type(cause).__name__}: {cause}",))
    return Finding(name, "failed" if problems else "ok", problems)
