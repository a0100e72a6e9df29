"""Array files that hold image and label: the .npz of CVPR 2024's challenge, Synapse's slices and volumes."""

from __future__ import annotations

from pathlib import Path

from medsaga.data.challenge_npz import challenge_datalist, challenge_modality
from medsaga.reading import ARRAYS, suffix_of
from medsaga.reading.arrays import array_shapes

from .layout import Case, Layout, OtherLayoutError, existing_folder, layout_of, patient_in
from .listing import list_items
from .named_files import unique_names
from .patients import patient_rule
from .patterns import SPLITS
from .words import split_word

__all__ = ["array_files_datalist", "find_array_files"]

_LABELS = ("gts", "label")


def array_files_datalist(dataset_dir: str | Path, patient: str = r"(.+)") -> list[Case]:
    """Labelled cases of a folder of .npz and .h5 files, each with an image and its label.

    Where all lie in folders of a split (``train_npz``, ``test_vol_h5``) that is the cases' part of it.

    Args:
        dataset_dir: the folder, searched with the folders in it.
        patient: regular expression whose first group, matched at the start of a file's name without suffix, is the
            patient; ``r"(case\\d+)"`` takes all slices of Synapse's ``case0005_slice000`` together.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
    """
    folder = existing_folder(dataset_dir, "data set folder")
    items = [item for item in list_items(folder) if item.suffix in ARRAYS]
    if not items:
        raise FileNotFoundError(f"No array file ({', '.join(ARRAYS)}) in {folder.absolute()}.")
    words = [split_word(item.key.rpartition("/")[0], SPLITS) for item in items]
    cases: list[Case] = []
    for item, word in zip(items, words):
        stem = item.key.rpartition("/")[2]
        case: Case = {"image": item.path, "label": item.path, "patient": patient_in(stem, patient)}
        case["name"] = item.key.replace("/", "_")
        if all(words) and len({word.lower() for word in words if word}) > 1:
            case["split"] = SPLITS[str(word).lower()]
        cases.append(case)
    return unique_names(cases)


def find_array_files(folder: Path, labels: Path | None = None) -> Layout:
    """A folder of array files, each with image and label.

    Raises:
        OtherLayoutError: it is none.
    """
    if labels is not None or not folder.is_dir():
        raise OtherLayoutError(f"array files ({', '.join(ARRAYS)})")
    items = list_items(folder)
    arrays = [item for item in items if item.suffix in ARRAYS]
    if len(arrays) * 2 <= len(items) or not arrays:
        raise OtherLayoutError(f"array files ({', '.join(ARRAYS)})")
    names = array_shapes(arrays[0].path)
    if not any(name in names for name in _LABELS):
        raise OtherLayoutError(f"an array gts or label in {arrays[0].path}")
    stems = [item.key.rpartition("/")[2] for item in arrays]
    if "gts" in names and all(suffix_of(item.path) == ".npz" for item in arrays):
        try:
            modalities = {challenge_modality(item.path) for item in arrays}
        except ValueError:
            modalities = set()
        if modalities:
            one = modalities.pop() if len(modalities) == 1 else ""
            notes = ("Each file counts as a patient of its own: the challenge names none.",)
            return layout_of("npz of CVPR 2024", challenge_datalist, folder, {}, modality=one, notes=notes)
    rule = patient_rule(stems)
    arguments = {} if rule is None else {"patient": rule[0]}
    return layout_of(
        "array files with image and label",
        array_files_datalist,
        folder,
        arguments,
        notes=() if rule is None else (rule[1],),
    )
