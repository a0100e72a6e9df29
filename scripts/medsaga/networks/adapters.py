"""Adapters in Segment Anything's encoder and decoder, as in the Medical SAM Adapter (MSA)."""

from __future__ import annotations

import math

import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from timm.models.tiny_vit import TinyVitBlock
from torch import nn
from torch.nn import functional as F

from .depth_attention import DepthAttention
from .mask_decoder import ClassMaskDecoder
from .tiny_vit import TinyViTEncoder
from .vit import ViTBlock, ViTEncoder

__all__ = ["Adapter", "adapter_options", "add_adapters"]

_MLP_SCALE = 0.5  # s of the paper's code


class Adapter(nn.Module):
    """A bottleneck: down-projection, GELU, up-projection. The up-projection starts at zero, so the result does too.

    If the surrounding layers run in half precision (by autocast or by their own weights), the parameters stay in
    float32, because rounding would lose their updates. They are rounded where they are used.

    Args:
        dim: number of channels C.
        width: number of channels w of the bottleneck.
        condition: take a second input of C channels, whose own down-projection is added before the activation.

    Shape:
        - x, condition, output: (..., C)
        - down, down_condition: (w, C); up: (C, w)

    Source:
        Medical SAM Adapter (arXiv 2304.12620), section on the architecture.
    """

    def __init__(self, dim: int, width: int, condition: bool = False) -> None:
        super().__init__()
        self.down = _as_linear_starts(width, dim)
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.down_condition = _as_linear_starts(width, dim) if condition else None
        self.up = nn.Parameter(torch.zeros(dim, width))
        self.up_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        low = F.linear(x, self.down.to(x.dtype), self.down_bias.to(x.dtype))
        if condition is not None:
            low = low + F.linear(condition, self.down_condition.to(condition.dtype))
        low = F.gelu(low)
        return F.linear(low, self.up.to(low.dtype), self.up_bias.to(low.dtype))


def _as_linear_starts(rows: int, columns: int) -> nn.Parameter:
    weight = torch.empty(rows, columns)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return nn.Parameter(weight)


class AdaptedViTBlock(ViTBlock):
    """A block of Segment Anything's encoder with an adapter after attention and one beside the MLP.

    Submodules are those of the given block and keep their names, so checkpoints made without adapters load by name.

    Args:
        block: the block to adapt; its submodules are taken over.
        width: width of the adapters.
        depth: number D of neighbouring slices that also attend to each other; None to process each slice on its own.

    Shape:
        - input, output: (B, H, W, C)
    """

    def __init__(self, block: ViTBlock, width: int, depth: int | None) -> None:
        nn.Module.__init__(self)
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self.window_size = block.window_size
        dim = block.norm1.normalized_shape[0]
        self.attention_adapter, self.mlp_adapter = Adapter(dim, width), Adapter(dim, width)
        self.depth_adapter = None if depth is None else DepthAttention(block.attn, Adapter(dim, width), depth)

    def mix_tokens(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        if self.window_size == 0:
            attended = self.attn(normed)
        else:
            windows, padded = window_partition(normed, self.window_size)
            attended = window_unpartition(self.attn(windows), self.window_size, padded, x.shape[1:3])
        if self.depth_adapter is not None:
            attended = attended + self.depth_adapter(normed, self.attn)
        return x + attended + self.attention_adapter(attended)

    def mix_channels(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm2(x)
        return x + self.mlp(normed) + _MLP_SCALE * self.mlp_adapter(normed)


class AdaptedTinyViTBlock(nn.Module):
    """A transformer block of TinyViT with the adapters of :class:`AdaptedViTBlock`.

    Args:
        block: the block to adapt; its submodules are taken over under their names.
        width: as in :class:`AdaptedViTBlock`.
        depth: as in :class:`AdaptedViTBlock`.

    Shape:
        - input, output: (B, H, W, C)
    """

    def __init__(self, block: TinyVitBlock, width: int, depth: int | None) -> None:
        super().__init__()
        self.attn, self.mlp, self.local_conv = block.attn, block.mlp, block.local_conv
        self.window_size = block.window_size
        self.attention_adapter, self.mlp_adapter = Adapter(block.dim, width), Adapter(block.dim, width)
        self.depth_adapter = None if depth is None else DepthAttention(block.attn, Adapter(block.dim, width), depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[1:3]
        windows, padded = window_partition(x, self.window_size)
        attended = self.attn(windows.flatten(1, 2)).view_as(windows)
        attended = window_unpartition(attended, self.window_size, padded, size)
        if self.depth_adapter is not None:
            attended = attended + self.depth_adapter(self.attn.norm(x), self.attn)
        x = x + attended + self.attention_adapter(attended)
        # the same steps as in timm, because gradients of BatchNorm depend on the memory layout (see TinyViTEncoder)
        x = self.local_conv(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = x + self.mlp(x) + _MLP_SCALE * self.mlp_adapter(self.mlp.norm(x))
        return x.unflatten(1, size)


class AdaptedTwoWayBlock(nn.Module):
    """The first block of SAM's mask decoder with three adapters, for the prompts, for the MLP and for the image.

    The third adapts the sum of image and attention. It has its own residual, and SAM's own norm follows. A further norm
    after that would change SAM's result even while the adapter gives zero, because SAM's norm has weights.

    Args:
        block: the block to adapt; its submodules are taken over under their names.
        width: width of the adapters.

    Shape:
        - queries, query_pe, first output: (B, N, 256); keys, key_pe, second output: (B, h w, 256)
    """

    def __init__(self, block: TwoWayAttentionBlock, width: int) -> None:
        super().__init__()
        for name, module in block.named_children():
            setattr(self, name, module)
        dim = block.norm1.normalized_shape[0]
        self.prompt_adapter = Adapter(dim, width, condition=True)
        self.mlp_adapter, self.image_adapter = Adapter(dim, width), Adapter(dim, width)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, query_pe: torch.Tensor, key_pe: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # without positions and without a residual: only SAM's first block does this
        queries = self.norm1(self.self_attn(q=queries, k=queries, v=queries))

        attended = self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
        queries = self.norm2(queries + attended + self.prompt_adapter(attended, query_pe))

        queries = self.norm3(queries + self.mlp(queries) + _MLP_SCALE * self.mlp_adapter(queries))

        keys = keys + self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries)
        return queries, self.norm4(keys + self.image_adapter(keys))


def add_adapters(network: nn.Module, width: int, depth: int | None = None) -> None:
    """Freeze a network except for the parts that MSA trains, and add its adapters, which at first change nothing.

    The adapters of all encoder blocks and of the decoder's first block are trained. These parts are trained in full:
    the decoder's second block, the layers that turn its result into masks (last attention, mask tokens, upscaling,
    hypernetworks), and the projection of images with other than 1 or 3 channels.

    With ``depth`` a batch is divided from its start into groups of D neighbouring slices (the last group may be
    smaller), and each block also attends across the slices of a group, see
    :class:`~medsaga.networks.depth_attention.DepthAttention`.

    Args:
        network: a :class:`~medsaga.networks.SamSegmenter`; changed in place.
        width: number of channels of the adapters' bottleneck.
        depth: number D of neighbouring slices of the 3-D form; None for the 2-D form.

    Raises:
        ValueError: when width or depth is too small, or the encoder computes images one at a time, so that they could
            not attend to each other.

    Source:
        Medical SAM Adapter (arXiv 2304.12620), section on the architecture.
    """
    if width < 1:
        raise ValueError(f"adapters: width={width}: an adapter has at least 1 channel, for example 64")
    encoder: ViTEncoder | TinyViTEncoder = network.image_encoder
    if depth is not None:
        if depth < 2:
            raise ValueError(
                f"adapters: depth={depth}: it must be at least 2 slices for 3-D, and left out (null) for 2-D"
            )
        if encoder.checkpointing == "least":
            raise ValueError(
                f"adapters: depth={depth} cannot be used with checkpointing='least', because that computes one image "
                "at a time: set checkpointing='blocks'"
            )
    network.requires_grad_(False)
    if network.channel_projection is not None:
        network.channel_projection.requires_grad_(True)
    if isinstance(encoder, TinyViTEncoder):
        for stage in encoder.stages:
            for i, block in enumerate(stage.blocks):
                if isinstance(block, TinyVitBlock):
                    stage.blocks[i] = AdaptedTinyViTBlock(block, width, depth)
    else:
        for i, block in enumerate(encoder.blocks):
            encoder.blocks[i] = AdaptedViTBlock(block, width, depth)

    decoder: ClassMaskDecoder = network.mask_decoder
    first, second = decoder.transformer.layers
    decoder.transformer.layers[0] = AdaptedTwoWayBlock(first, width)
    trained = [second, decoder.transformer.final_attn_token_to_image, decoder.transformer.norm_final_attn]
    for module in [*trained, decoder.mask_tokens, decoder.output_upscaling, decoder.output_hypernetworks_mlps]:
        module.requires_grad_(True)


def adapter_options(state: dict[str, torch.Tensor]) -> dict[str, int | None]:
    """Read from a state dict which adapters its network has.

    Args:
        state: state dict of a ``SamSegmenter``.

    Returns:
        ``width`` and ``depth``, as the argument ``adapters`` of :class:`~medsaga.networks.SamSegmenter` takes them;
        empty for a network without adapters.
    """
    width = next((len(value) for key, value in state.items() if key.endswith("_adapter.down")), None)
    if width is None:
        return {}
    biases = next((value for key, value in state.items() if key.endswith(".distance_bias")), None)
    return {"width": width, "depth": None if biases is None else (biases.shape[1] + 1) // 2}
