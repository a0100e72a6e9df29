"""Keep what identifies patients out of the logs."""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

__all__ = ["keep_persons_out", "without_persons"]

_LEFT_OUT = "(not logged)"
# of persons, by DICOM's keywords, by their names ("Patient's Birth Date") and by their tags (00100010, "0010,0010")
_ATTRIBUTES = (
    r"Patient(?:'?s)?[ _]?(?:ID|Name|Birth[ _]?Date|Birth[ _]?Time|Birth[ _]?Name|Mother'?s?[ _]?Birth[ _]?Name|Address"
    r"|Telephone[ _]?Numbers?|Insurance[ _]?Plan[ _]?Code[ _]?Sequence|Comments)|Other[ _]?Patient[ _]?(?:IDs?|Names?)"
    r"(?:[ _]?Sequence)?|Issuer[ _]?Of[ _]?Patient[ _]?ID|Medical[ _]?Record[ _]?Locator|Accession[ _]?Number"
    r"|Referring[ _]?Physician(?:'?s)?[ _]?Name|Responsible[ _]?Person|Admission[ _]?ID"
    r"|\(?0010,? ?(?!0040|1010|1030)[0-9A-F]{4}\)?|\(?0008,? ?00[59]0\)?"
)
# in quotes, also those of JSON within JSON, as an object or a list, or up to the next separator
_VALUE = (
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\\+["'].*?\\+["']"""
    r"""|\{(?:[^{}]|\{[^{}]*\})*\}|\[(?:[^\[\]]|\[[^\[\]]*\])*\]|[^\s,;&|{}\[\]"'][^,;&|}\]\n"']*"""
)
_NAMED = re.compile(rf"""(?<![A-Za-z])({_ATTRIBUTES})(\\*["']?\s*(?:[:=]|%3D|=>)\s*)(?:{_VALUE})""", re.IGNORECASE)
# a data set as pydicom prints it: (0010, 0010) Patient's Name      PN: 'A^B'
_PRINTED = re.compile(r"(\((?:0010, ?[0-9A-F]{4}|0008, ?00[59]0)\)[^\n]{0,80}?\b[A-Z]{2}: ).*", re.IGNORECASE)
# pydicom's warnings show a value without its attribute
_INVALID = re.compile(r"""(Invalid value for VR \w+: ).*?(?=\.? Please see|\n|$)""")


def without_persons(text: str) -> str:
    """A text with the values of attributes that identify a patient left out.

    Attributes are found by name or tag, in what Python, JSON, addresses and pydicom print. Sex, age and weight stay.

    Args:
        text: to be logged.
    """
    text = _PRINTED.sub(rf"\1{_LEFT_OUT}", text)
    text = _NAMED.sub(rf"\1\2{_LEFT_OUT}", text)
    return _INVALID.sub(rf"\1{_LEFT_OUT}", text)


def keep_persons_out() -> None:
    """From now on every logger of this process leaves persons out, with its tracebacks and Python's warnings.

    Handlers of all libraries write log records, so persons are removed when a record is made.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "keeps_persons_out", False):
        return

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        try:
            message = made.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: the handler says so
            return made
        clean = without_persons(message)
        if clean != message:
            # uvicorn's own formatter reads the arguments, so they are kept if cleaning them is enough
            if isinstance(made.args, tuple):
                made.args = tuple(without_persons(a) if isinstance(a, str) else a for a in made.args)
            if made.getMessage() != clean:
                made.msg, made.args = clean, ()
        if made.exc_info and made.exc_info[0]:
            made.exc_text = without_persons("".join(traceback.format_exception(*made.exc_info)).rstrip("\n"))
        return made

    record.keeps_persons_out = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    logging.captureWarnings(True)
