from .embedding import image_embedding
from .selection import k_centre, mixed
from .slices import MAX_SLICES
from .uncertainty import disagreement, mean_entropy

__all__ = ["MAX_SLICES", "disagreement", "image_embedding", "k_centre", "mean_entropy", "mixed"]
