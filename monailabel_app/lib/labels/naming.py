"""What the values of a label mean, in the words of each client. The rule is the same for all stores.

* 3D Slicer sends ``label_info`` with ``name`` and ``idx``. It numbers the segments that it exports from 1 in the order
  of the list. Its ``idx`` also counts segments that it leaves out (background, scribbles), so it increases, but it is
  not the segment's value.
* OHIF gives each segment its value as ``segmentIndex``.
* Other clients give each segment its value as ``idx``.
* MONAI Label's models give the value by name as ``params.label_names``.
* Without names values are class numbers, in whatever form a bundle takes them, see :mod:`medsaga.reading.labels`.

If every segment has a ``segmentIndex``, these are the values. Else ``idx`` gives the values if every segment has one
and Slicer cannot have sent them: they do not increase from 1 on, or a value of the file is larger than the number of
segments. Else the order gives the values.

Names are equal where :func:`medsaga.dicom_seg.label_key` makes them equal: without case, underscores and extra spaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException
from pydantic import BaseModel, ValidationError

from lib.names import field_error
from lib.served_model import ServedModel
from medsaga.dicom_seg import label_key
from medsaga.reading import Grid, ReadingError
from medsaga.reading.labels import class_numbers

__all__ = ["Meaning", "fitting_models", "known_segments", "meaning", "named_values"]

_Key = TypeVar("_Key")


class _Segment(BaseModel):
    name: str | None = None
    idx: int | None = None
    segmentIndex: int | None = None  # noqa: N815


class _Params(BaseModel):
    label_names: dict[str, int] | None = None


class _Names(BaseModel):
    """What clients send beside a label."""

    label_info: list[_Segment] | None = None
    params: _Params | None = None
    model: str | None = None


@dataclass(frozen=True)
class Meaning:
    """What a label's values mean.

    Attributes:
        numbers: class number by value of the file, without the background.
        models: names of the served models that the label fits.
        classes: name by class number, of the classes that are there.
        warnings: what the annotator should know.
    """

    numbers: dict[int, int]
    models: tuple[str, ...]
    classes: dict[int, str]
    warnings: tuple[str, ...] = ()


def fitting_models(models: Mapping[str, ServedModel], image: Grid) -> dict[str, ServedModel]:
    """Those that work on images of this dimension."""
    return {key: m for key, m in models.items() if m.dimension in (len(image.shape), image.rank)}


def meaning(present: Sequence[int], info: Mapping[str, Any], models: Mapping[str, ServedModel], what: str) -> Meaning:
    """What the values of a label file mean.

    Args:
        present: values that occur, without 0.
        info: of the client: ``label_info``, ``params.label_names``, and ``model``, by which a client says whose classes
            they are.
        models: served models that work on the image.
        what: is named in errors.

    Raises:
        HTTPException: 422 with what is wrong and what would be right.
    """
    named = named_values(present, info, what)
    meant = info.get("model")
    models = {meant: models[meant]} if meant in models else models
    found = _by_name(present, named, models, what) if named else _by_number(present, models, what)
    if present:
        return found
    empty = f"{what}: no voxel is labelled; the whole image is background."
    return Meaning({}, found.models, {}, (*found.warnings, empty))


def named_values(present: Sequence[int], info: Mapping[str, Any], what: str) -> dict[int, str]:
    """Names that a client gives the values, by value; empty where it names nothing.

    Raises:
        HTTPException: 422 for names of another form, two names of a value, and values without a name.
    """
    try:
        sent = _Names.model_validate({key: info.get(key) for key in _Names.model_fields})
    except ValidationError as err:
        raise HTTPException(422, f"{what}: {field_error(err)}.") from err
    segments = [s for s in sent.label_info or [] if s.name and s.name.strip()]
    if segments:
        pairs = list(zip(_values(segments, max(present, default=0)), [str(s.name) for s in segments]))
    else:
        pairs = [(v, name) for name, v in ((sent.params and sent.params.label_names) or {}).items()]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise HTTPException(422, f"{what}: label_info gives several segments the same value; give each its own.")
    unnamed = [v for v in present if v not in named]
    if named and unnamed:
        names = ", ".join(named.values())[:500]
        raise HTTPException(422, f"{what}: its values {unnamed[:8]} have no name; label_info names only {names}.")
    return named


def _values(segments: Sequence[_Segment], largest: int) -> Sequence[int]:
    """The value of each segment, by the rule above."""
    own, idx = [s.segmentIndex for s in segments], [s.idx for s in segments]
    if None not in own:
        return own
    if None not in idx:
        rises = idx[0] >= 1 and all(a < b for a, b in pairwise(idx))
        if not rises or largest > len(segments):
            return idx
    return range(1, len(segments) + 1)


def known_segments(names: Iterable[str], models: Mapping[str, ServedModel]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Classes of a segmentation that comes from elsewhere, whose other segments are left out.

    Returns:
        class number by name, and the models that know the most of the names and give them these numbers; both empty
        where no model knows any.
    """
    found = {key: _known({name: name for name in names}, model) for key, model in models.items()}
    most = max(found.values(), key=len, default={})
    return most, tuple(key for key, numbers in found.items() if numbers == most and most)


def _by_name(present: Sequence[int], named: Mapping[int, str], models: Mapping[str, ServedModel], what: str) -> Meaning:
    """The models that know all segments and give them the same numbers as the first of these models.

    If nothing is labelled, these are the models that know any of the segments that are named.
    """
    mappings = {}
    for key, model in models.items():
        known = _known(named, model)
        if known and all(v in known for v in present):
            mappings[key] = {v: known[v] for v in present}
    if not mappings:
        segments = ", ".join(repr(named[v]) for v in present or named)[:500]
        raise HTTPException(
            422,
            f"{what}: its segments {segments} are not all classes of one served model; rename them. {_listed(models)}.",
        )
    return _of_the_first(mappings, models)


def _by_number(present: Sequence[int], models: Mapping[str, ServedModel], what: str) -> Meaning:
    """The models that have classes of these numbers, if they are the same classes in all of them."""
    mappings, notices = {}, {}
    for key, model in models.items():
        try:
            numbers, notices[key] = class_numbers(np.array(present, dtype=int), model.num_classes, what)
        except ReadingError:
            continue
        mappings[key] = dict(zip(present, numbers.tolist()))
    if not mappings:
        raise HTTPException(
            422, f"{what}: its values {present[:8]} are not all classes of one served model. {_listed(models)}."
        )
    classes = {key: _classes(models[key], numbers.values() or None) for key, numbers in mappings.items()}
    if len({tuple(map(label_key, names.values())) for names in classes.values()}) > 1:
        choices = "; ".join(f"{', '.join(names.values())} of {key}" for key, names in classes.items())
        raise HTTPException(
            422,
            f"{what}: its values {present[:8]} could be {choices}. Name the values in label_info, or say by model in "
            "params whose classes they are.",
        )
    return _of_the_first(mappings, models, notices[next(iter(mappings))])


def _of_the_first(
    mappings: Mapping[str, dict[int, int]], models: Mapping[str, ServedModel], notices: tuple[str, ...] = ()
) -> Meaning:
    first, numbers = next(iter(mappings.items()))
    same = tuple(key for key, others in mappings.items() if others == numbers)
    return Meaning(numbers, same, _classes(models[first], numbers.values()), notices)


def _classes(model: ServedModel, numbers: Iterable[int] | None) -> dict[int, str]:
    """Names of a model's classes by number: of those in ``numbers``, or of all if that is None."""
    wanted = None if numbers is None else set(numbers)
    return {number: name for name, number in model.labels.items() if wanted is None or number in wanted}


def _known(names: Mapping[_Key, str], model: ServedModel) -> dict[_Key, int]:
    """Class numbers of those names that a model knows."""
    numbers = {label_key(name): number for name, number in model.labels.items()}
    return {key: numbers[label_key(name)] for key, name in names.items() if label_key(name) in numbers}


def _listed(models: Mapping[str, ServedModel]) -> str:
    return "; ".join(
        f"{key} has " + ", ".join(f"{number} {name}" for name, number in {"background": 0, **m.labels}.items())
        for key, m in models.items()
    )
