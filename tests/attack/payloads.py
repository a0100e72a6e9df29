"""Values that no client means to send, by kind; each field of each route gets some of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["KINDS", "Raw", "expression_mark", "payload"]

_LETTERS = "αβ漢字🩻‮ñ"


class Raw(bytes):
    """Bytes that go out as they are, in the place of a value: text that is no UTF-8, a literal that is no JSON."""


def expression_mark(seed: int) -> str:
    """Name of the file that an evaluated expression writes."""
    return f"attacked_{seed}"


def _expressions(mark: str) -> list[str]:
    write = f"__import__('pathlib').Path('{mark}').write_text('x')"
    return [
        f"${write}",
        f"${write} and 'cpu'",
        f"$import pathlib; pathlib.Path('{mark}').touch()",
        f"@bundle_root$({write})",
        "@bundle_root",
        "@train#trainer",
        "%train",
        "%train::lr",
        f"%{mark}.json",
        write,
        f"{{{{{write}}}}}",
        "{{1337*1337}}",
        "${1337*1337}",
        "{0.__class__.__mro__}",
        "%(asctime)s %s %n %x",
        f"`touch {mark}`",
        f"; touch {mark} ;",
        f"$(touch {mark})",
        f"cpu'; {write} #",
        f"!!python/object/apply:os.system ['touch {mark}']",
        "_target_",
        json.dumps({"_target_": "os.system", "command": f"touch {mark}"}),
        "${jndi:ldap://127.0.0.1/x}",
    ]


def _paths(mark: str) -> list[str]:
    return [
        "../../outside/secret.txt",
        "../outside/secret.txt",
        f"../../outside/{mark}",
        f"../{mark}",
        "..",
        ".",
        "/",
        "/etc/passwd",
        "/proc/self/environ",
        "file:///etc/passwd",
        "..%2f..%2foutside%2fsecret.txt",
        "%2e%2e/%2e%2e/outside/secret.txt",
        "..\\..\\outside\\secret.txt",
        "phantom_000/../../../outside/secret.txt",
        "phantom_000\x00.png",
        "phantom_000.nii.gz",
        "./phantom_000",
        "PHANTOM_000",
        ".medsaga",
        ".lock",
        "datastore_v2.json",
        "labels",
        "link",  # a symbolic link that the studies folder holds, to a file outside
        "linked/secret.txt",
        "CON",
        "~root",
        "a" * 300,
        "a/" * 200,
        f"http://127.0.0.1:9/{mark}",
    ]


_NUMBERS: list[Any] = [
    *(0, -1, 1, 2, 3, 255, 65536, 2**31, -(2**31) - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0, 5e-324, 0.5),
    *(Raw(text) for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000, b"0x10", b"01", b"+1")),
    *("NaN", "Infinity", "1e999", "-1", "1" * 5000, "٣", "1_000", "0.5", "1,5"),
]
_TYPES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        " ",
        [],
        {},
        [[]],
        [None],
        {"": ""},
        [1],
        ["a"],
        {"a": 1},
        [[1, 2], [3]],
        [[1, "a", None]],
    ),
    *("null", "true", "[]", "{}", "None", "a", [0] * 1000, {str(n): n for n in range(1000)}),
]
_TEXTS: list[Any] = [
    "a" * 10_000,
    "a" * 1_000_000,
    _LETTERS,
    _LETTERS * 1000,
    "a\nb\r\nSet-Cookie: x=1",
    "\x00",
    "a\x00b",
    "\x1b[2J\x07",
    "﻿a",
    "'\"<script>alert(1)</script>",
    "' OR 1=1 --",
    Raw(b'"\\ud800"'),
    Raw(b'"\\udc00\\ud800"'),
    Raw(b'"\xff\xfe"'),
    Raw(b'"\xc0\xae\xc0\xae/"'),
    Raw(b'"\\u0000"'),
    Raw(b'"a'),
    Raw(b"{"),
    Raw(b""),
    Raw(b"\xff\xfe\x00"),
    Raw(b'{"a": 1, "a": 2}'),
    Raw(b"/* */ 1"),
]


def _depth(rng: np.random.Generator, mark: str) -> Any:
    depth = int(rng.choice([20, 300, 990, 5000, 100_000]))
    opening, closing, inside = [(b"[", b"]", b""), (b'{"a":', b"}", b"1"), (b'[{"a":', b"}]", b"[]")][rng.integers(3)]
    return Raw(opening * depth + inside + closing * depth)


def _one_of(values: Callable[[str], list[Any]]) -> Callable[[np.random.Generator, str], Any]:
    def choose(rng: np.random.Generator, mark: str) -> Any:
        choices = values(mark)
        return choices[rng.integers(len(choices))]

    return choose


def _nested(rng: np.random.Generator, mark: str) -> Any:
    """An expression as key or item of what a field holds."""
    text = _one_of(_expressions)(rng, mark)
    return [[text], {"a": text}, {text: 1}, {"_target_": text}, {"device": text}, {"name": [{"a": [text]}]}][
        rng.integers(6)
    ]


KINDS: dict[str, Callable[[np.random.Generator, str], Any]] = {
    "expression": _one_of(_expressions),
    "expression inside": _nested,
    "path": _one_of(_paths),
    "number": _one_of(lambda mark: _NUMBERS),
    "type": _one_of(lambda mark: _TYPES),
    "text": _one_of(lambda mark: _TEXTS),
    "depth": _depth,
}


def payload(kind: str, rng: np.random.Generator, mark: str) -> Any:
    """A value of a kind: anything that JSON can hold, or :class:`Raw`.

    Args:
        kind: a key of ``KINDS``.
        rng: chooses.
        mark: name of the file that an expression would write.
    """
    return KINDS[kind](rng, mark)
