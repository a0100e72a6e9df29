"""Codes of anatomy in DICOM segmentations."""

import json

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed (pip install medsaga[label])")

from lib.dicom_seg import _CODES, _segment, label_key
from pydicom.sr.codedict import codes

from ..integration.bundles import ROOT


def test_codes_are_those_of_snomed():
    """Against pydicom's own table of the codes that DICOM names."""
    for name, (structure, modifier) in _CODES.items():
        for value, meaning in filter(None, (structure, modifier)):
            known = getattr(codes.SCT, meaning.title().replace(" ", ""))
            assert (known.value, known.meaning.lower()) == (value, meaning.lower()), name


def test_amos_organs_have_one_each():
    names = json.loads((ROOT / "bundles" / "amos" / "configs" / "train.json").read_text())["class_names"][1:]
    private = [name for name in names if label_key(name) not in _CODES]
    assert private == ["prostate/uterus"], "one class, two organs"
    segments = [_segment(value, name, "test") for value, name in enumerate(names, start=1)]
    seen = {json.dumps([s[k] for k in s if "Sequence" in k]) for s in segments}
    assert len(seen) == len(names)
