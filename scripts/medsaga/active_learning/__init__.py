from .embedding import image_embedding
from .selection import k_centre, k_medoids, mixed
from .slice_selection import class_stratified, class_uncertainty, power_choice
from .slices import MAX_SLICES
from .uncertainty import disagreement, mean_entropy, unsure_pixels

__all__ = [
    "MAX_SLICES",
    "class_stratified",
    "class_uncertainty",
    "disagreement",
    "image_embedding",
    "k_centre",
    "k_medoids",
    "mean_entropy",
    "mixed",
    "power_choice",
    "unsure_pixels",
]
