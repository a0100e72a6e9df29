"""LiteMedSAM's image encoder: a TinyViT whose embedding is a quarter of the input side."""

from __future__ import annotations

import re

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, ConvLayer, ConvNorm, PatchMerging, TinyVitStage
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .checkpointing import image_by_image, is_recording, offloaded, recomputed

__all__ = ["FINE_CHANNELS", "FoldedConvNorm", "TinyViTEncoder", "from_lite_medsam"]

FINE_CHANNELS = (64, 128)  # of the first two stages


class TinyViTEncoder(nn.Module):
    """LiteMedSAM's TinyViT, built from timm's parts.

    It differs from timm's TinyViT-5M in three places: the patch embedding is two 1x1 convolutions of stride 1, the last
    merging has stride 1, and SAM's neck of 256 channels replaces the classifier. It has no table of absolute
    positions, so weights of any image size fit any other.

    BatchNorm layers always normalise by their running statistics, in ``train()`` too: fine-tuning batches are too small
    for statistics of their own, and a slice's result must not depend on its neighbours in the batch. Their affine
    weights are trained like any other.

    Args:
        image_size: side of the square input in pixels, a multiple of 8. Multiples of 56 fill the attention windows
            exactly; at other sizes these are padded, which costs up to three times the time (64 px as much as 112 px).
        checkpointing: as in :class:`~medsaga.networks.SamSegmenter`. Here the patch embedding and each MBConv and
            merging layer count as blocks, too.
        offload: as in :class:`~medsaga.networks.SamSegmenter`.

    Raises:
        ValueError: when ``image_size`` is no positive multiple of 8.

    Shape:
        - input: (B, 3, image_size, image_size)
        - output: (B, 256, image_size / 4, image_size / 4)

    Source:
        TinyViT (arXiv 2207.10666); LiteMedSAM, the baseline of the CVPR 2024 "MedSAM on Laptop" challenge.
    """

    def __init__(self, image_size: int = 256, checkpointing: str = "off", offload: bool = False) -> None:
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size={image_size}: vit_t needs a multiple of 8, for example 224 or 256")
        self.img_size = image_size
        self.checkpointing = checkpointing
        self.offload = offload
        self.patch_embed = nn.Sequential(ConvNorm(3, 32), nn.GELU(), ConvNorm(32, 64))
        self.stages = nn.Sequential(
            ConvLayer(64, depth=2, act_layer=nn.GELU),
            _stage(64, 128, depth=2, num_heads=4, window_size=7, merging=PatchMerging),
            _stage(128, 160, depth=6, num_heads=5, window_size=14, merging=PatchMerging),
            _stage(160, 320, depth=2, num_heads=10, window_size=7, merging=_MergingAtSameSize),
        )
        _fold_norms(self)
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, kernel_size=1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._embed(x, 0)[0]

    def with_fine_features(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The embedding, and the features of the first two stages.

        Shape:
            - x: (B, 3, S, S)
            - output: (B, 256, S / 4, S / 4); (B, 64, S, S) and (B, 128, S / 2, S / 2), see ``FINE_CHANNELS``
        """
        return self._embed(x, len(FINE_CHANNELS))

    def _embed(self, x: torch.Tensor, kept: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The embedding, and the features of the first ``kept`` stages; results of other stages are not kept."""
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            # In this layout convolutions take half the time, and the channels are last already, as the blocks need
            # them.
            x = x.contiguous(memory_format=torch.channels_last)
        found: list[torch.Tensor] = []
        with offloaded(self.offload, x.device):
            x = self._run(self.patch_embed, x)  # (B, 64, S, S)
            for number, stage in enumerate(self.stages):
                if number == 0:
                    for block in stage.blocks:
                        x = self._run(block, x)
                else:
                    # In another layout PyTorch 2.14's BatchNorm on a CPU gives wrong gradients for a single image.
                    x = self._run(stage.downsample, x).permute(0, 2, 3, 1).contiguous()
                    for block in stage.blocks:
                        x = self._run(block, x)
                    x = x.permute(0, 3, 1, 2)
                if number < kept:
                    found.append(x)
            return self._run(self.neck, x), found  # the neck's input is (B, 320, S/4, S/4)

    def _run(self, piece: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing == "off" or not is_recording(self):
            return piece(x)
        return recomputed(piece, x) if self.checkpointing == "blocks" else image_by_image(piece, x)

    def train(self, mode: bool = True) -> TinyViTEncoder:
        """Switch the mode as usual, save that BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class _LeanAttention(Attention):
    """timm's attention without its cache of position biases, and with less kept for backward.

    In eval mode timm keeps the gathered biases until the next ``train()``: weights loaded meanwhile would be ignored,
    and a backward pass in eval mode would work only once. Gathering them anew costs next to nothing.

    PyTorch's fused CPU kernel has no backward for trained biases, and without this kernel every softmax would be kept.
    So in training on a CPU the product is computed again in backward, and only the scores of one block exist at a time:
    196² per head for each window of 14 × 14, and 7² × 7² for one of 7 × 7.
    """

    def _init_buffers(self) -> None:
        """Which bias each pair of positions has: the same indices as in timm, which finds them pair by pair."""
        rows, columns = self.resolution
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        across, along = ((axis.flatten()[:, None] - axis.flatten()).abs() for axis in (row, column))
        self.attention_bias_idxs.copy_(across * columns + along)

    def get_attention_biases(self, device: torch.device) -> torch.Tensor:
        # (1, heads, N, N): with fewer axes PyTorch's fused CPU kernel would not take them
        if device.type != "cpu":
            return self.attention_biases[None, :, self.attention_bias_idxs]
        # On a CPU the gradient of indexing is summed in the order in which threads finish, so its last bits vary from
        # run to run; on a GPU that is true of index_select. On a CPU index_select also takes a fraction of the time.
        chosen = self.attention_biases.index_select(1, self.attention_bias_idxs.flatten())
        return chosen.unflatten(1, self.attention_bias_idxs.shape)[None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        inputs = (*qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=-1), self.get_attention_biases(x.device))
        if x.device.type == "cpu" and is_recording(self):
            out = recomputed(F.scaled_dot_product_attention, *inputs)
        else:
            out = F.scaled_dot_product_attention(*inputs)
        return self.proj(out.transpose(1, 2).flatten(2))


class FoldedConvNorm(nn.Sequential):
    """timm's convolution and BatchNorm as one convolution in inference.

    The weights stay apart under their names: folding them at each call costs little beside the pass over the image that
    it saves.
    """

    def __init__(self, pair: ConvNorm) -> None:
        super().__init__()
        self.conv, self.bn = pair.conv, pair.bn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        conv, norm = self.conv, self.bn
        # not fuse_conv_bn_eval: it first copies the convolution, and a copy of a fake tensor is a tensor of another
        # kind
        statistics = norm.running_mean, norm.running_var, norm.eps
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _fold_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, FoldedConvNorm(child))
        else:
            _fold_norms(child)


class _MergingAtSameSize(PatchMerging):
    """timm's merging of patches with stride 1: it only widens the channels."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.conv2.conv.stride = (1, 1)


def _stage(
    dim: int, out_dim: int, depth: int, num_heads: int, window_size: int, merging: type[PatchMerging]
) -> TinyVitStage:
    # timm's own attentions are replaced below; with a window size of 1 they are fast to make
    stage = TinyVitStage(dim, out_dim, depth, num_heads, 1, downsample=merging)
    for block in stage.blocks:
        block.window_size = window_size
        block.attn = _LeanAttention(
            out_dim, out_dim // num_heads, num_heads, attn_ratio=1, resolution=(window_size, window_size)
        )
    return stage


def from_lite_medsam(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the image encoder's parameters from LiteMedSAM's published names to this module's.

    Args:
        state: a LiteMedSAM state dict; keys of other parts pass unchanged.

    Returns:
        The same tensors under names as in :class:`TinyViTEncoder`.
    """
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    prefix = "image_encoder."
    if not key.startswith(prefix):
        return key
    name = key[len(prefix) :].replace("patch_embed.seq.", "patch_embed.")
    name = re.sub(r"\.c\.weight$", ".conv.weight", name)
    # LiteMedSAM puts a merging at the end of the stage before it, timm at the start of the stage after it.
    name = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
    return prefix + re.sub(r"^layers\.", "stages.", name)
