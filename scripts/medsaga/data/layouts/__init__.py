"""Layouts that data sets come in, and which of them a folder has."""

from .array_files import array_files_datalist
from .bids import bids_datalist
from .decathlon import decathlon_datalist
from .dicom import dicom_datalist
from .layout import Layout
from .named_files import named_files_datalist
from .nnunet import nnunet_datalist
from .paired_folders import paired_folders_datalist
from .recognise import UnknownLayoutError, recognise
from .tables import table_datalist

__all__ = [
    "Layout",
    "UnknownLayoutError",
    "array_files_datalist",
    "bids_datalist",
    "decathlon_datalist",
    "dicom_datalist",
    "named_files_datalist",
    "nnunet_datalist",
    "paired_folders_datalist",
    "recognise",
    "table_datalist",
]
