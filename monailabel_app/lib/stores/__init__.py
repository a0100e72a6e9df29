from .archive import search_filter
from .dicomweb import DicomStore
from .folder import FolderStore

__all__ = ["DicomStore", "FolderStore", "search_filter"]
