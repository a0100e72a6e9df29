"""Segment Anything as a medical segmentation network: automatic without prompts, interactive with them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from segment_anything.modeling import PromptEncoder
from torch import nn

from .adapters import add_adapters
from .channel_projection import ChannelProjection
from .checkpointing import CHECKPOINTING, is_recording
from .encoders import build_encoder, embedding_size
from .fine_features import FineFeatures
from .lora import add_lora
from .mask_decoder import ClassMaskDecoder
from .saved_state import NORMALIZATION
from .tiny_vit import FINE_CHANNELS
from .weights import load_weights

__all__ = ["PRECISIONS", "SamSegmenter", "mask_prompt"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "bf16_weights": torch.bfloat16}

_ENCODER_TAKES = (1, 3)  # channels, one of them by broadcasting
_SURE = 10.0  # logit of a mask that is given as a prompt


class SamSegmenter(nn.Module):
    """Segment Anything with one mask per class.

    Without a prompt the prompt encoder's default ("no mask") embedding is used and every class is segmented
    automatically; points or boxes steer the same weights. Submodules are those of ``segment_anything`` and keep their
    names, so SAM, MedSAM and LiteMedSAM checkpoints load by name (see :func:`medsaga.networks.load_weights`).

    The network normalises intensities as its weights expect: SAM's by its mean and deviation, MedSAM's and LiteMedSAM's
    not at all. ``pixel_mean`` and ``pixel_std`` (in units of the [0, 1] input) are saved with the weights.

    The image encoder, the mask decoder and the prompt encoder's ``no_mask_embed`` are trained. Parts that are not used
    without a prompt (embeddings of points and boxes, mask downscaling) are frozen unless ``train_prompts`` is set; the
    IoU head is always frozen. Every trainable parameter has a gradient after each step, so DDP needs no
    ``find_unused_parameters``.

    Args:
        encoder: image encoder, one of ``vit_b``, ``vit_l``, ``vit_h``, ``vit_t``, ``vit_test``.
        image_size: side S of the square input in pixels; a multiple of 16, for ``vit_t`` of 8.
        num_classes: number of classes k, background included.
        weights: what to start from: a published name (``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``, ``medsam_vit_b``,
            ``lite_medsam``) or a checkpoint file. None leaves the fresh random weights.
        new_head: take published weights without the layers that predict the masks, which start fresh; use it to train
            new classes. With a number of classes other than SAM's four masks these layers always start fresh.
        lora: freeze the image encoder and train LoRA on its attention instead (SAMed). The keys are ``rank`` and, if
            the defaults do not suit, ``projections`` and ``mlp`` of :func:`~medsaga.networks.lora.add_lora`. With
            ``decoder: True`` the mask decoder's transformer is frozen too and gets LoRA as the encoder does; mask
            tokens, upscaling and hypernetworks are trained in full (SAMed_s).
        adapters: train adapters and the decoder's second half (MSA). The keys are ``width`` and, in 3-D, ``depth`` of
            :func:`~medsaga.networks.adapters.add_adapters`.
        checkpointing: what backward computes again instead of keeping it, in ``train()``. ``off``: nothing; ``blocks``:
            intermediate results inside the encoder's blocks, except attention to the whole image; ``least``:
            everything, for one image and half a block at a time, also in the neck and the decoder.
        offload: keep in CPU memory what the encoder needs in backward (with checkpointing, the blocks' inputs). It
            saves nothing if the CPU itself computes.
        precision: ``fp32``: as the caller's autocast says; ``bf16``, ``fp16``: by the network's own autocast, in
            training and in inference; ``bf16_weights``: as ``bf16``, and the encoder's matrices and kernels are also
            stored in bfloat16, for an optimizer that rounds stochastically. ``fp16`` needs a GPU, and MONAI's
            ``amp=True`` in training. All but ``fp32`` return float32 logits whatever the caller's autocast.
        train_prompts: train the embeddings of points, boxes and masks too, for training with prompts (LiteMedSAM's were
            trained with boxes only). Adapters (MSA) freeze them again, as in the paper.
        in_channels: number of channels C of the images, such as MR sequences. One is repeated to the encoder's three,
            three go to them as they are, so 1 and 3 are the same network. Any other number goes through a
            :class:`~medsaga.networks.channel_projection.ChannelProjection`, which every method trains; in
            :func:`~medsaga.optimizers.sam_param_groups` it belongs to the decoder's group. Published weights can still
            be loaded.
        fine_features: the decoder gets the encoder's finer features too, see
            :class:`~medsaga.networks.fine_features.FineFeatures`. ``vit_t`` only: a ViT has one resolution.

    Raises:
        ValueError: when the encoder or another choice is unknown, the size does not fit it, there are fewer than two
            classes or no channel, or the weights are of another network.
        TypeError: a key of ``lora`` or ``adapters`` is unknown, or ``rank`` or ``width`` is missing.

    Shape:
        - image: (B, C, S, S), intensities in [0, 1]; where C is 1 or 3, both (B, 1, S, S) and (B, 3, S, S)
        - output: (B, k, m, m) logits at SAM's mask resolution, four times the embedding grid:
          m = S for ``vit_t``, m = S / 4 for the others

    Source:
        MedSAGa (arXiv 2407.15042), section 3; Segment Anything (arXiv 2304.02643); SAMed (arXiv 2304.13785), section
        3.
    """

    def __init__(
        self,
        encoder: str = "vit_t",
        image_size: int = 256,
        num_classes: int = 2,
        weights: str | Path | None = None,
        new_head: bool = False,
        lora: Mapping[str, Any] | None = None,
        adapters: Mapping[str, Any] | None = None,
        checkpointing: str = "off",
        offload: bool = False,
        precision: str = "fp32",
        train_prompts: bool = False,
        in_channels: int = 1,
        fine_features: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: it counts the background, so it must be at least 2")
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels}: an image has at least 1 channel")
        if checkpointing not in CHECKPOINTING:
            raise ValueError(f"checkpointing={checkpointing!r} is unknown: choose one of {', '.join(CHECKPOINTING)}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        if lora is not None and adapters is not None:
            raise ValueError("lora and adapters are both set: set only one of them")
        if fine_features and encoder != "vit_t":
            raise ValueError(f"fine_features needs encoder='vit_t': {encoder} has features of one resolution only")
        self.encoder = encoder
        self.image_size = image_size
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.precision = precision
        self.base: str | None = None  # published weights that the loaded ones are based on, see trained_state
        self.trained_plane: str | None = None  # "all" where the loaded ones have learnt from all planes

        # numbers of channels that an image may have, the most that reach the encoder last
        self.channel_counts = _ENCODER_TAKES if in_channels in _ENCODER_TAKES else (in_channels,)
        self.channel_projection = None if in_channels in _ENCODER_TAKES else ChannelProjection(in_channels)
        self.image_encoder = build_encoder(encoder, image_size, checkpointing, offload)
        grid = embedding_size(encoder, image_size)
        self.prompt_encoder = PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        )
        self.mask_decoder = ClassMaskDecoder(num_classes, checkpointing)
        self.fine_features = FineFeatures(FINE_CHANNELS) if fine_features else None
        mean, std = NORMALIZATION["unit" if encoder == "vit_t" else "sam"]
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1))

        self.prompt_encoder.requires_grad_(train_prompts)
        self.prompt_encoder.no_mask_embed.requires_grad_(True)
        self.mask_decoder.iou_prediction_head.requires_grad_(False)
        if lora is not None:
            self._add_lora(**lora)
        if adapters is not None:
            add_adapters(self, **adapters)

        if weights is not None:
            load_weights(self, weights, new_head)
        if precision == "bf16_weights":
            for module in self.image_encoder.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.weight.data = module.weight.data.bfloat16()

    def _add_lora(self, rank: int, projections: str = "qv", mlp: bool = False, decoder: bool = False) -> None:
        for transformer in [self.image_encoder, self.mask_decoder.transformer][: 1 + decoder]:
            add_lora(transformer, rank, projections, mlp)

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        if self.precision == "fp16" and device.type == "cpu":
            raise ValueError("precision='fp16' needs a GPU: choose bf16 or fp32 on a CPU")
        # Each weight is used once, so autocast's cache would only hold copies of them all.
        return torch.autocast(device.type, PRECISIONS[self.precision], cache_enabled=False)

    def forward(
        self,
        image: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Segment images, optionally steered by one prompt set each: ``decode(encode(image), points, boxes, masks)``.

        Args:
            image: images with intensities in [0, 1].
            points: coordinates x, y in input pixels and labels: 1 inside the object, 0 outside, -1 no point (padding).
            boxes: corners x0, y0, x1, y1 in input pixels.
            masks: the object's mask so far, which the other prompts correct: logits, as from :func:`mask_prompt`.

        Returns:
            Class logits.

        Shape:
            - image: (B, C, S, S), as the network's ``in_channels`` says
            - points: (B, N, 2) and (B, N); boxes: (B, 4); masks: (B, 1, m, m)
            - output: (B, k, m, m)

        Raises:
            ValueError: when the image or a prompt has another shape.
        """
        return self.decode(self.encode(image), points, boxes, masks)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the image embedding, once per image however many prompts follow.

        Args:
            image: images with intensities in [0, 1].

        Returns:
            Embeddings for :meth:`decode`.

        Shape:
            - image: (B, C, S, S), as the network's ``in_channels`` says
            - output: (B, 256, m / 4, m / 4), with ``fine_features`` (B, 448, m / 4, m / 4)

        Raises:
            ValueError: when the image has another size, number of channels or an integer type.
        """
        size = self.image_size
        if image.ndim != 4 or image.shape[1] not in self.channel_counts or image.shape[2:] != (size, size):
            wanted = " or ".join(map(str, self.channel_counts))
            raise ValueError(f"image has shape {tuple(image.shape)}: it must be (B, {wanted}, {size}, {size})")
        if not image.is_floating_point():
            raise ValueError(f"image is of type {image.dtype}: scale it to floating point intensities in [0, 1]")
        if isinstance(image, MetaTensor):
            image = image.as_tensor()  # each layer would copy its metadata, and our own operators do not know it
        return self.embed(image)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """What :meth:`encode` does after its checks."""
        if self.channel_projection is not None:
            image = self.channel_projection(image)
        # A grey image gains its three channels here by broadcasting.
        with self._autocast(image.device):
            image = (image - self.pixel_mean) / self.pixel_std
            if self.fine_features is None:
                return self.image_encoder(image)
            return self.fine_features.join(*self.image_encoder.with_fine_features(image))

    def decode(
        self,
        embedding: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict class logits from image embeddings and prompts.

        One embedding takes any number P of prompt sets in one pass.

        Args:
            embedding: what :meth:`encode` returned.
            points: as in :meth:`forward`.
            boxes: as in :meth:`forward`.
            masks: as in :meth:`forward`.

        Returns:
            Class logits.

        Shape:
            - embedding: as of :meth:`encode`
            - points: (P, N, 2) and (P, N); boxes: (P, 4); masks: (P, 1, m, m); P = B, or B = 1
            - output: (P, k, m, m); without prompts (B, k, m, m)

        Raises:
            ValueError: when the prompts have other shapes or their number fits neither the embeddings nor each other.
        """
        _check_prompts(embedding, points, boxes, masks)
        # In half precision neighbouring pixels share a positional encoding, so positions stay in float32.
        with torch.autocast(embedding.device.type, enabled=False):
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=masks)
            if is_recording(self):
                # DDP expects a gradient for each trained parameter, even for kinds of prompts that are absent
                trained = (p for p in self.prompt_encoder.parameters() if p.requires_grad)
                dense = dense + 0 * sum(p.sum() for p in trained)
            image_pe = self.prompt_encoder.get_dense_pe()
        with self._autocast(embedding.device):
            logits = self.predict(embedding, image_pe, sparse, dense)
        return logits if self.precision == "fp32" else logits.float()

    def predict(
        self, embedding: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> torch.Tensor:
        """What :meth:`decode` does with the prompt encoder's results: positions, points and boxes, and masks."""
        fine: list[torch.Tensor] = []
        if self.fine_features is not None:
            embedding, *fine = self.fine_features.split(embedding)
        return self.mask_decoder(embedding, image_pe, sparse, dense, fine)


def mask_prompt(masks: torch.Tensor) -> torch.Tensor:
    """Turn a mask into a prompt: logits of a mask that is certain in every pixel.

    The mask that a prompt corrects need not be the network's own, so its logits are not known.

    Args:
        masks: bool (B, m, m), at the logits' resolution.

    Returns:
        (B, 1, m, m).

    Source:
        Segment Anything (arXiv 2304.02643), appendix A (dense prompts).
    """
    return masks[:, None] * 2 * _SURE - _SURE


def _check_prompts(
    embedding: torch.Tensor,
    points: tuple[torch.Tensor, torch.Tensor] | None,
    boxes: torch.Tensor | None,
    masks: torch.Tensor | None,
) -> None:
    images, counts = embedding.shape[0], {}
    if points is not None:
        coords, labels = points
        if coords.ndim != 3 or coords.shape[2] != 2 or labels.shape != coords.shape[:2]:
            raise ValueError(
                f"points have coordinates {tuple(coords.shape)} and labels {tuple(labels.shape)}: "
                "they must be (B, N, 2) and (B, N)"
            )
        counts["point sets"] = coords.shape[0]
    if boxes is not None:
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes have shape {tuple(boxes.shape)}: they must be (B, 4), corners x0, y0, x1, y1")
        counts["boxes"] = boxes.shape[0]
    if masks is not None:
        side = 4 * embedding.shape[-1]
        if masks.shape[1:] != (1, side, side):
            raise ValueError(f"masks have shape {tuple(masks.shape)}: they must be (B, 1, {side}, {side}), logits")
        counts["masks"] = masks.shape[0]
    if len(set(counts.values())) > 1 or (images > 1 and any(count != images for count in counts.values())):
        given = " and ".join(f"{count} {what}" for what, count in counts.items())
        raise ValueError(f"{given} for {images} images: give equal numbers, one per image or several for one image")
