from .check import CheckedLabel, check_label, checked_values, write_label
from .grid import read_label
from .naming import fitting_models, known_segments, named_values

__all__ = [
    "CheckedLabel",
    "check_label",
    "checked_values",
    "fitting_models",
    "known_segments",
    "named_values",
    "read_label",
    "write_label",
]
