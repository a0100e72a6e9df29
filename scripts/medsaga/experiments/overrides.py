"""Values of config keys from a command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["override"]


def override(text: str) -> tuple[str, Any]:
    """Split ``KEY=VALUE``; the value is read as JSON if possible, else as text. For argparse's ``type``."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, for example image_size=112")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
