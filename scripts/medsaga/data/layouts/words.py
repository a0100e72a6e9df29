"""Words in names of files and folders that say what is in them."""

from __future__ import annotations

import re

__all__ = ["about_images", "about_labels", "split_word", "words_of"]

_LABELS = {
    *(
        "anno",
        "annot",
        "annotation",
        "annotations",
        "gt",
        "gts",
        "groundtruth",
        "truth",
        "label",
        "labels",
        "lbl",
        "lbls",
    ),
    *("manual", "mask", "masks", "msk", "msks", "seg", "segm", "segms", "segs", "segmentation", "segmentations"),
}
# what an image may be of as well
_MAYBE_LABELS = {
    *("contour", "contours", "lesion", "lesions", "roi", "rois", "target", "targets", "tumor", "tumour", "y"),
}
_IMAGES = {
    *("adc", "ct", "cxr", "dicom", "dwi", "flair", "image", "images", "imaging", "img", "imgs", "input", "inputs"),
    *("mr", "mri", "orig", "original", "originals", "pet", "photo", "photos", "picture", "pictures", "raw", "scan"),
    *("scans", "swi", "t1", "t1c", "t1ce", "t1gd", "t1w", "t2", "t2w", "us", "vol", "volume", "volumes", "x"),
}


def words_of(text: str) -> list[str]:
    """Words of a name in lower case: ``labelsTr`` is ``labels`` and ``tr``, ``T1c_1`` is ``t1c`` and ``1``."""
    found: list[str] = []
    for part in re.findall(r"[A-Za-z0-9]+", text):
        if part.lower() in _IMAGES | _LABELS:
            found.append(part.lower())
        else:
            found += re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", part)
    return [word.lower() for word in found]


def about_labels(text: str, strict: bool = True) -> bool:
    """Whether a name says that there is a label. Less strictly, also where it may say what the image is of."""
    words = words_of(text)
    return any(word in _LABELS or word.endswith(("mask", "masks", "label", "labels")) for word in words) or (
        not strict and not _MAYBE_LABELS.isdisjoint(words)
    )


def about_images(text: str) -> bool:
    """Whether a name says that there is an image."""
    return not _IMAGES.isdisjoint(words_of(text))


def split_word(text: str, parts: dict[str, str]) -> str | None:
    """The word of a name that says which part of a split it is of, as it is written there.

    Args:
        text: ``imagesTr``.
        parts: of a split by word in lower case.
    """
    for match in re.finditer(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text):
        if match[0].lower() in parts:
            return match[0]
    return None
