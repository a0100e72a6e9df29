"""DAE-Former, a transformer trained from scratch: what a small data set gives without Segment Anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["DAEFormer"]

_WIDTHS = (128, 320, 512)
_CHANNEL_HEADS = 8
_BLOCKS = 2  # dual attention blocks a level
_STRIDE = 16  # of the deepest level


def efficient_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    r"""Attention over all positions at a cost that grows with their number, not with its square.

    .. math:: E(Q, K, V) = \rho_q(Q) \, (\rho_k(K)^T V)

    The softmax :math:`\rho_q` goes over channels and :math:`\rho_k` over positions, so the product in brackets, of
    channels by channels, may come first.

    Shape:
        - query, key, value, output: (B, H, W, C)

    Source:
        Shen et al. (arXiv 1812.01243); DAE-Former (arXiv 2212.13504), section 2.1.
    """
    context = key.flatten(1, 2).softmax(dim=1).transpose(1, 2) @ value.flatten(1, 2)  # (B, C, C)
    return (query.flatten(1, 2).softmax(dim=2) @ context).view_as(query)


class EfficientAttention(nn.Module):
    """:func:`efficient_attention` of an image to itself, with projections before and after.

    Args:
        width: channels C.

    Shape:
        - input, output: (B, H, W, C)

    Source:
        DAE-Former (arXiv 2212.13504), section 2.1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(efficient_attention(self.query(x), self.key(x), self.value(x)))


class TransposeAttention(nn.Module):
    r"""Attention among channels: each becomes a mixture of all channels of its head.

    .. math:: T(Q, K, V) = V \, \mathrm{softmax}(\tau K^T Q)

    Queries and keys have unit length along the positions, and :math:`\tau` is learnt for each head. (The paper divides
    by it, its authors' code multiplies.)

    Args:
        width: channels C, a multiple of the heads.

    Shape:
        - input: (B, H, W, C)
        - output: (B, H, W, C)

    Source:
        XCiT (arXiv 2106.09681), eq. 2; DAE-Former (arXiv 2212.13504), section 2.2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(_CHANNEL_HEADS, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (B, H, W, 3 C) → three of (B, heads, C / heads, N)
        qkv = self.qkv(x).flatten(1, 2).unflatten(2, (3, _CHANNEL_HEADS, -1)).permute(2, 0, 3, 4, 1)
        query, key, value = qkv
        # in half precision a sum of squares over an image would overflow
        query, key = F.normalize(query.float(), dim=3), F.normalize(key.float(), dim=3)
        weights = (query @ key.transpose(2, 3) * self.temperature).softmax(dim=3)
        out = weights.to(value.dtype) @ value  # (B, heads, C / heads, N)
        return self.proj(out.flatten(1, 2).transpose(1, 2).view_as(x))


class MixFFN(nn.Module):
    """``FC(GELU(LN(DWConv(FC(x)) + FC(x))))``, where a convolution of 3 × 3 tells positions apart: there is no other
    encoding.

    Args:
        width: channels C.
        inner: channels between the two layers.

    Shape:
        - input, output: (B, H, W, C)

    Source:
        MISSFormer (arXiv 2109.07162), the enhanced Mix-FFN, as in the authors' code of DAE-Former; the paper's eq. 7
        has neither the norm nor the sum.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.mix = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.norm = nn.LayerNorm(inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.widen(x)
        mixed = self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.narrow(F.gelu(self.norm(mixed + x)))


class DualAttention(nn.Module):
    """Attention over positions, then among channels, each followed by a :class:`MixFFN`; all four are residual.

    Args:
        width: channels C.

    Shape:
        - input, output: (B, H, W, C)

    Source:
        DAE-Former (arXiv 2212.13504), section 2.3.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.positions, self.channels = EfficientAttention(width), TransposeAttention(width)
        self.mlps = nn.ModuleList(MixFFN(width, 4 * width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positions(self.norms[0](x))
        x = x + self.mlps[0](self.norms[1](x))
        x = x + self.channels(self.norms[2](x))
        return x + self.mlps[1](self.norms[3](x))


class SkipCrossAttention(nn.Module):
    """Skip connection: the encoder's features are queries and keys, the decoder's are values.

    The result is added to both, side by side, and a :class:`MixFFN` and a projection follow.

    Args:
        width: channels C of the encoder's features.
        deep_width: channels D of the decoder's.

    Shape:
        - skip: (B, H, W, C); deep: (B, H, W, D)
        - output: (B, H, W, C)

    Source:
        DAE-Former (arXiv 2212.13504), section 2.4, and its authors' code for what that leaves open.
    """

    def __init__(self, width: int, deep_width: int) -> None:
        super().__init__()
        self.fit = nn.Linear(deep_width, width)
        self.norm = nn.LayerNorm(width)
        self.reproject, self.norm_attended = nn.Linear(width, 2 * width), nn.LayerNorm(2 * width)
        self.norm_mlp, self.mlp = nn.LayerNorm(2 * width), MixFFN(2 * width, 4 * width)
        self.join = nn.Linear(2 * width, width)

    def forward(self, skip: torch.Tensor, deep: torch.Tensor) -> torch.Tensor:
        deep = self.fit(deep)
        query = self.norm(skip)
        attended = self.reproject(efficient_attention(query, query, self.norm(deep)))
        x = torch.cat([deep, skip], dim=3) + self.norm_attended(attended)
        return self.join(x + self.mlp(self.norm_mlp(x)))


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and a norm, (B, C, H, W) → (B, H / stride, W / stride, width)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class PatchExpanding(nn.Module):
    """Each position becomes ``factor`` × ``factor`` of ``out`` channels, (B, H, W, C) → (B, fH, fW, out)."""

    def __init__(self, width: int, out: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(width, out * factor**2, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (B, H, W, f f out) → (B, H, f, W, f, out)
        x = self.expand(x).unflatten(3, (self.factor, self.factor, -1)).permute(0, 1, 3, 2, 4, 5)
        return self.norm(x.flatten(3, 4).flatten(1, 2))


class DAEFormer(nn.Module):
    """DAE-Former: dual attention over positions and channels in three levels, with cross attention for skips.

    The encoder is an overlapping patch embedding (stride 4) and three levels, each of two :class:`DualAttention` blocks
    and a norm. The second and third level begin with an overlapping patch merging (stride 2). The decoder has, twice,
    patch expanding (× 2), :class:`SkipCrossAttention` with the encoder's level and two more blocks; expanding × 4 and a
    linear classifier follow. Nothing depends on the image's size. There are no pretrained weights: as in the paper it
    starts fresh.

    What the paper leaves open is as in its authors' code: channels of the levels 128, 320 and 512; norms before each
    part; one head over positions and eight among channels; no blocks in the decoder at the deepest level.

    It has 29.7 million parameters with 9 classes. The authors' network has 48.1 million, but 18.4 million of them take
    no part in a forward pass and get no gradient: skip attention and blocks of the decoder's deepest level, and two
    further norms in each Mix-FFN. They are left out here.

    Args:
        num_classes: number of classes k, background included.
        widths: channels of the three levels, multiples of 8.
        in_channels: number of channels C of the images; 1 and 3 are the same network.

    Raises:
        ValueError: when there are fewer than two classes, or the widths are not three multiples of 8.

    Shape:
        - image: (B, C, S, S), intensities in [0, 1], S a multiple of 16; where C is 1 or 3, both (B, 1, S, S), repeated
          to three channels, and (B, 3, S, S)
        - output: (B, k, S, S) logits

    Source:
        Azad et al., "DAE-Former: Dual Attention-guided Efficient Transformer" (arXiv 2212.13504).
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = _WIDTHS, in_channels: int = 1) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: it counts the background, so it must be at least 2")
        if len(widths) != 3 or any(width < 1 or width % _CHANNEL_HEADS for width in widths):
            raise ValueError(f"widths={tuple(widths)}: there must be three, multiples of {_CHANNEL_HEADS}")
        self.channel_counts = (1, 3) if in_channels in (1, 3) else (in_channels,)
        first, second, third = widths
        self.embeddings = nn.ModuleList(
            [
                PatchEmbedding(self.channel_counts[-1], first, kernel=7, stride=4),
                PatchEmbedding(first, second, kernel=3, stride=2),
                PatchEmbedding(second, third, kernel=3, stride=2),
            ]
        )
        self.encoder = nn.ModuleList(_level(width).append(nn.LayerNorm(width)) for width in widths)
        self.expandings = nn.ModuleList([PatchExpanding(third, third // 2, 2), PatchExpanding(second, second // 2, 2)])
        self.skips = nn.ModuleList([SkipCrossAttention(second, third // 2), SkipCrossAttention(first, second // 2)])
        self.decoder = nn.ModuleList([_level(second), _level(first)])
        self.last_expanding = PatchExpanding(first, first, 4)
        self.classifier = nn.Linear(first, num_classes)
        for part in (self.expandings, self.skips, self.decoder, self.last_expanding, self.classifier):
            part.apply(_initialize)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        counts = self.channel_counts
        if image.ndim != 4 or image.shape[1] not in counts or any(side % _STRIDE for side in image.shape[2:]):
            wanted = " or ".join(map(str, counts))
            raise ValueError(
                f"image has shape {tuple(image.shape)}: it must be (B, {wanted}, S, S) with S a multiple of {_STRIDE}, "
                "for example image_size=224"
            )
        x = image.expand(-1, counts[-1], -1, -1)
        features = []
        for embedding, blocks in zip(self.embeddings, self.encoder):
            features.append(blocks(embedding(x)))  # (B, S/4, S/4, C), S/8, S/16
            x = features[-1].permute(0, 3, 1, 2)
        x = features.pop()
        for expanding, skip, blocks in zip(self.expandings, self.skips, self.decoder):
            x = blocks(skip(features.pop(), expanding(x)))
        return self.classifier(self.last_expanding(x)).permute(0, 3, 1, 2)


def _level(width: int) -> nn.Sequential:
    return nn.Sequential(*(DualAttention(width) for _ in range(_BLOCKS)))


def _initialize(layer: nn.Module) -> None:
    """Initialise as the authors do in the decoder; the encoder keeps the initial values of PyTorch's layers."""
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
