from .embedding import image_embedding
from .selection import k_centre, k_medoids, mixed
from .slices import MAX_SLICES
from .uncertainty import disagreement, mean_entropy, unsure_pixels

__all__ = [
    "MAX_SLICES",
    "disagreement",
    "image_embedding",
    "k_centre",
    "k_medoids",
    "mean_entropy",
    "mixed",
    "unsure_pixels",
]
