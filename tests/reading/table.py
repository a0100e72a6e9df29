"""All inputs of known truth, and a page of what becomes of them.

``python -m tests.reading.table > docs/reading_inputs.md``
"""

from __future__ import annotations

from .dicom_inputs import INPUTS as DICOM
from .volume_inputs import INPUTS as FILES
from .volume_inputs import PICTURE_INPUTS, PictureInput

__all__ = ["PICTURES", "VOLUMES"]

VOLUMES = [*(row for row in DICOM if row.pixels is None), *FILES]
PICTURES = [
    *(
        PictureInput(row.name, row.make, (23.5, 15.5), row.pixels, row.refused)
        for row in DICOM
        if row.pixels is not None
    ),
    *PICTURE_INPUTS,
]
