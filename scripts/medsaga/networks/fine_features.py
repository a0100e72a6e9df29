"""Fine-resolution features of the image encoder, for the mask decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.nn import functional as F

__all__ = ["EMBEDDING_CHANNELS", "FineFeatures"]

EMBEDDING_CHANNELS = 256  # of SAM's image embedding

_KEPT = (8, 16)  # channels at 4 and 2 times the embedding's grid
_UPSCALED = (32, 64)  # of SAM's upscaling at these grids


class FineFeatures(nn.Module):
    """Features of the encoder's first stages, at 4 and 2 times the embedding's grid, added in the decoder's upscaling.

    SAM's decoder predicts 4 × 4 pixels from one embedding. Here each step of its upscaling also gets the encoder's
    features at that resolution, as in a U-Net. The added part starts from zero, so at first published weights give
    their own logits.

    The features are stored with the embedding as further channels, so code that keeps or sends embeddings need not know
    of them. For this they are projected to fewer channels, and each pixel of a finer grid gets channels of its own.

    Args:
        channels: of the encoder's features at 4 and at 2 times the embedding's grid.

    Source:
        The idea is that of SAM-HQ (arXiv 2306.01567) and H-SAM (arXiv 2403.18271), and of U-Net's connections.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        # normalised, as the embedding is: the first stages have no norm after their last sum
        self.narrow = nn.ModuleList(
            nn.Sequential(nn.Conv2d(found, kept, 1), LayerNorm2d(kept)) for found, kept in zip(channels, _KEPT)
        )
        self.widen = nn.ModuleList(nn.Conv2d(kept, wide, 1) for kept, wide in zip(_KEPT, _UPSCALED))
        for layer in self.widen:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def join(self, embedding: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The embedding with the features as further channels.

        Shape:
            - embedding: (B, 256, h, w); features: (B, C0, 4h, 4w) and (B, C1, 2h, 2w)
            - output: (B, 448, h, w)
        """
        finest, finer = (layer(x) for layer, x in zip(self.narrow, features))
        return torch.cat([embedding, F.pixel_unshuffle(finest, 4), F.pixel_unshuffle(finer, 2)], dim=1)

    def split(self, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The embedding, and what to add in the upscaling.

        Shape:
            - joined: (B, 448, h, w)
            - output: (B, 256, h, w), (B, 32, 4h, 4w), (B, 64, 2h, 2w)
        """
        embedding, finest, finer = joined.split([EMBEDDING_CHANNELS, 16 * _KEPT[0], 4 * _KEPT[1]], dim=1)
        return embedding, self.widen[0](F.pixel_shuffle(finest, 4)), self.widen[1](F.pixel_shuffle(finer, 2))
