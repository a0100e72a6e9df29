from lib.stores.archive import search_filter
from lib.stores.dicomweb import DicomStore
from lib.stores.folder import FolderStore

__all__ = ["DicomStore", "FolderStore", "search_filter"]
