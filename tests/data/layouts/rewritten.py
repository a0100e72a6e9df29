"""A Decathlon folder rewritten as other tools and people lay out the same images and labels."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["FORMS", "rewrite"]

_Case = tuple[str, Path, Path]  # name, image, label


def rewrite(source: Path, target: Path, form: str, most: int | None = None) -> Path:
    """Write the labelled cases of a Decathlon folder in another form.

    Args:
        source: folder with ``dataset.json``.
        target: folder to write to.
        form: of :data:`FORMS`.
        most: of the cases; None for all.

    Returns:
        the target.
    """
    index = json.loads((source / "dataset.json").read_text())
    cases = [
        (Path(case["image"]).name.removesuffix(".nii.gz"), source / case["image"], source / case["label"])
        for case in index["training"][:most]
        if (source / case["image"]).exists()
    ]
    names = {int(value): name for value, name in index["labels"].items() if int(value) > 0}
    target.mkdir(parents=True, exist_ok=True)
    FORMS[form](target, cases, names)
    return target


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _nnunet_v2(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    for name, image, label in cases:
        _copy(image, target / "imagesTr" / f"{name}_0000.nii.gz")
        _copy(label, target / "labelsTr" / f"{name}.nii.gz")
    labels = {"background": 0, **{name: value for value, name in names.items()}}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": len(cases)}
    (target / "dataset.json").write_text(json.dumps(content))


def _nnunet_v1(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    _nnunet_v2(target, cases, names)
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n, _, _ in cases]
    labels = {"0": "background", **{str(value): name for value, name in names.items()}}
    content = {"modality": {"0": "MRI"}, "labels": labels, "training": listed, "test": []}
    (target / "dataset.json").write_text(json.dumps(content))


def _csv(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    rows = []
    for number, (name, image, label) in enumerate(cases):
        _copy(image, target / "scans" / f"{name}.nii.gz")
        _copy(label, target / "drawn" / f"by_ann_{number}.nii.gz")
        rows.append((f"scans/{name}.nii.gz", f"drawn/by_ann_{number}.nii.gz", name))
    with (target / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("Image", "Mask", "Patient_ID"), *rows])


def _json(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    _csv(target, cases, names)
    with (target / "cases.csv").open(newline="") as file:
        rows = [{"image": row["Image"], "label": row["Mask"]} for row in csv.DictReader(file)]
    (target / "cases.csv").unlink()
    (target / "datalist.json").write_text(json.dumps({"training": rows}))


def _bids(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    for name, image, label in cases:
        subject = f"sub-{name.replace('_', '')}"
        _copy(image, target / subject / "anat" / f"{subject}_T1w.nii.gz")
        drawn = target / "derivatives" / "manual" / subject / "anat" / f"{subject}_space-T1w_desc-manual_dseg.nii.gz"
        _copy(label, drawn)
    rows = [f"{value}\t{name}" for value, name in names.items()]
    (target / "derivatives" / "manual" / "dseg.tsv").write_text("\n".join(["index\tname", *rows]) + "\n")
    (target / "dataset_description.json").write_text('{"Name": "rewritten", "BIDSVersion": "1.8.0"}')
    (target / "participants.tsv").write_text(
        "\n".join(["participant_id\tage", *(f"sub-{name.replace('_', '')}\t60" for name, _, _ in cases)]) + "\n"
    )


def _one_hot(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    for name, image, label in cases:
        _copy(image, target / "images" / f"{name}.nii.gz")
        read = nib.load(label)
        numbers = np.asarray(read.dataobj)
        channels = np.stack([numbers == value for value in (0, *names)], -1).astype(np.uint8)
        path = target / "labels" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(channels, read.affine), path)


def _class_files(target: Path, cases: list[_Case], names: dict[int, str]) -> None:
    for name, image, label in cases:
        _copy(image, target / name / "mri.nii.gz")
        read = nib.load(label)
        (target / name / "segmentations").mkdir()
        for value, of_class in names.items():
            mask = (np.asarray(read.dataobj) == value).astype(np.uint8)
            nib.save(nib.Nifti1Image(mask, read.affine), target / name / "segmentations" / f"{of_class.lower()}.nii.gz")


FORMS: dict[str, Callable[[Path, list[_Case], dict[int, str]], None]] = {
    "nnU-Net v2": _nnunet_v2,
    "nnU-Net v1": _nnunet_v1,
    "csv": _csv,
    "json": _json,
    "BIDS": _bids,
    "one-hot": _one_hot,
    "one file a class": _class_files,
}
