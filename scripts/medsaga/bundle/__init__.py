from .errors import show_root_cause
from .root import find_bundle

__all__ = ["find_bundle", "show_root_cause"]
