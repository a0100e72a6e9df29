from .check_case import CheckCased
from .cut_planes import Cut, cuts
from .fill_unlabelled import FillUnlabelledd
from .fit_square import FitSquared, fit_square, undo_fit_square
from .mirror import RandMirrord
from .only_labelled import OnlyLabelledd
from .orient_slices import OrientSlicesd
from .read_image import ReadImaged
from .save_mask import SaveMaskd

__all__ = [
    "CheckCased",
    "Cut",
    "FillUnlabelledd",
    "FitSquared",
    "OnlyLabelledd",
    "OrientSlicesd",
    "RandMirrord",
    "ReadImaged",
    "SaveMaskd",
    "cuts",
    "fit_square",
    "undo_fit_square",
]
