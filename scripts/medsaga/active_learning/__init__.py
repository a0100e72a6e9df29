from .embedding import image_embedding
from .selection import k_centre, k_medoids, mixed
from .slice_selection import class_stratified, power_choice
from .slices import MAX_SLICES, evenly_spaced
from .uncertainty import class_uncertainty, disagreement, mean_entropy, unsure_pixels

__all__ = [
    "MAX_SLICES",
    "class_stratified",
    "class_uncertainty",
    "disagreement",
    "evenly_spaced",
    "image_embedding",
    "k_centre",
    "k_medoids",
    "mean_entropy",
    "mixed",
    "power_choice",
    "unsure_pixels",
]
