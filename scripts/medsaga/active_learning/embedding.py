"""An image or volume as one vector, by SAM's image encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .slices import MAX_SLICES, image_area, slice_batches

__all__ = ["image_embedding"]


@torch.no_grad()
def image_embedding(
    encode: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    image_size: int,
    batch_size: int = 8,
    max_slices: int = MAX_SLICES,
) -> torch.Tensor:
    """Mean of SAM's embedding over the image without its padding, and over the slices.

    Args:
        encode: (b, C, S, S) → embeddings (b, E, g, g): :meth:`medsaga.networks.SamSegmenter.encode`, of published
            weights where vectors are to stay comparable when the network is trained further.
        image: preprocessed image or volume, intensities in [0, 1].
        image_size: side S of the network's input, in pixels.
        batch_size: slices a batch.
        max_slices: of a volume, evenly spaced.

    Returns:
        (E,), E = 256, float32 on the CPU.

    Shape:
        - image: (C, H, W) or (C, H, W, D)

    Source:
        An image's descriptor as the spatial mean of a network's features: Yang et al., Suggestive Annotation, arXiv
        1706.04737, section 2.
    """
    total, count = 0.0, 0
    for batch in slice_batches(image, image_size, batch_size, max_slices):
        embedding = encode(batch).float()
        inside = image_area(tuple(image.shape[1:3]), image_size, embedding.shape[-1]).to(embedding.device)
        total = total + embedding[:, :, inside].mean(dim=2).sum(dim=0)
        count += len(embedding)
    return (total / count).cpu()
