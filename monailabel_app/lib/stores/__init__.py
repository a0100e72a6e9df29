from .archive import search_filter
from .dicomweb import DicomStore, write_series
from .folder import FolderStore
from .private import Private

__all__ = ["DicomStore", "FolderStore", "Private", "search_filter", "write_series"]
