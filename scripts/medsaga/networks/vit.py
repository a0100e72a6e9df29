"""Segment Anything's image encoder, in little memory."""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import nn

from .attention import RelPosAttention
from .checkpointing import image_by_image, is_recording, offloaded, recomputed

__all__ = ["ViTEncoder"]


class ViTBlock(nn.Module):
    """A transformer block of Segment Anything's encoder.

    Args:
        dim: number of channels C.
        num_heads: number of attention heads.
        window_size: side of the windows, in tokens, within which tokens attend to each other; 0 for the whole image.
        grid: side of the image's token grid.

    Shape:
        - input, output: (B, H, W, C)
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, grid: int) -> None:
        super().__init__()
        side = window_size or grid
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RelPosAttention(dim, num_heads, (side, side))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=dim, mlp_dim=4 * dim)
        self.window_size = window_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix_channels(self.mix_tokens(x))

    def in_halves(self, x: torch.Tensor) -> torch.Tensor:
        """As ``forward``; in backward only one half's tensors exist at a time."""
        return recomputed(self.mix_channels, recomputed(self.mix_tokens, x))

    def mix_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The attention half of the block."""
        if self.window_size == 0:
            return x + self.attn(self.norm1(x))
        size = x.shape[1:3]
        windows, padded = window_partition(self.norm1(x), self.window_size)
        return x + window_unpartition(self.attn(windows), self.window_size, padded, size)

    def mix_channels(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP half of the block."""
        return x + self.mlp(self.norm2(x))


class ViTEncoder(ImageEncoderViT):
    """Segment Anything's ViT with attention in little memory and activation checkpointing.

    Parameters and results are those of ``segment_anything``'s ``ImageEncoderViT``.

    Args:
        image_size: side S of the square input in pixels, a multiple of 16.
        embed_dim: number of channels of the blocks.
        depth: number of blocks.
        num_heads: number of attention heads.
        window_size: side of the attention windows in tokens.
        global_blocks: numbers of the blocks that attend to the whole image.
        checkpointing: as in :class:`~medsaga.networks.SamSegmenter`.
        offload: as in :class:`~medsaga.networks.SamSegmenter`.

    Shape:
        - input: (B, 3, S, S)
        - output: (B, 256, S / 16, S / 16)

    Source:
        Segment Anything (arXiv 2304.02643), appendix A.
    """

    def __init__(
        self,
        image_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        global_blocks: tuple[int, ...],
        checkpointing: str = "off",
        offload: bool = False,
    ) -> None:
        super().__init__(img_size=image_size, embed_dim=embed_dim, depth=0)
        self.blocks.extend(
            ViTBlock(embed_dim, num_heads, 0 if i in global_blocks else window_size, image_size // 16)
            for i in range(depth)
        )
        self.checkpointing = checkpointing
        self.offload = offload

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with offloaded(self.offload, x.device):
            return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        checkpointing = self.checkpointing if is_recording(self) else "off"
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            if checkpointing == "off":
                x = block(x)
            elif checkpointing == "blocks":
                # The result of attention to the whole image takes long to compute and is no larger than the block's
                # input, so it is kept; not with offload, because selective checkpointing would keep it on the device.
                x = recomputed(block, x, keep_attention=block.window_size == 0 and not self.offload)
            else:
                x = image_by_image(block.in_halves, x)
        x = x.permute(0, 3, 1, 2)
        return image_by_image(self.neck, x) if checkpointing == "least" else self.neck(x)
