from .archive import search_filter
from .dicomweb import DicomStore, write_series
from .folder import FolderStore

__all__ = ["DicomStore", "FolderStore", "search_filter", "write_series"]
