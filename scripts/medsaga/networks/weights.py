"""Weights and checkpoints loaded into a network; what a training has changed, as a checkpoint."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from .adapters import adapter_options
from .encoders import VIT_GEOMETRY
from .lora import lora_options
from .published import PUBLISHED
from .saved_state import normalization_buffers, published_state, read_state
from .tiny_vit import from_lite_medsam

if TYPE_CHECKING:
    from .sam_segmenter import SamSegmenter

__all__ = ["load_weights", "trained_state"]

logger = logging.getLogger(__name__)

_NO_LORA = {"lora_rank": None, "lora_projections": "qv", "lora_mlp": False, "lora_decoder": False}
# parameters that SAM does not have: LoRA's, the adapters', those of the channels and of the finer features
_PROJECTION = "channel_projection.weight"
_FINE = "fine_features."
_ADDED = re.compile(r"\.lora_|_adapter\.|^channel_projection\.|^fine_features\.")


def load_weights(network: SamSegmenter, weights: str | Path, new_head: bool = False, trained: bool = False) -> None:
    """Load published weights or a checkpoint file into a network, strictly.

    The file may be of SAM's, MedSAM's or LiteMedSAM's format, or a checkpoint of a ``SamSegmenter``, or one that
    :func:`trained_state` has made, or one of SAMed's (:func:`read_state`); bare, or wrapped and with prefixed keys as
    other programs save them (:func:`~medsaga.networks.checkpoint_files.find_state`).
    Loading adapts three things and nothing else:

    * Image size: the absolute positions are interpolated bicubically and the relative positions of global attention
      blocks linearly (SAMed, arXiv 2304.13785, section 4.1). Tables of windowed blocks do not depend on the size.
    * LoRA and adapters: a network that has them takes weights of SAM's format as its frozen part, and they start fresh.
      So does the projection of images with other than 1 or 3 channels. Fine features start fresh with any weights that
      have none, and change no logit then.
    * Classes: SAM's four mask tokens are guesses at one object, not classes. With ``new_head``, or when the network has
      another number of classes, the network's own fresh mask tokens, hypernetworks and IoU head stay, as in SAMed.
      (Copies of SAM's start from confident, wrong logits: on 100 hippocampus slices the mean loss of steps 100 to 120
      was 0.54 with them and 0.26 with fresh ones, ``vit_t`` at 112 px, batch 4.) Otherwise a network of four classes
      gives SAM's own four masks.

    Normalisation: a ``SamSegmenter`` checkpoint carries its own. For a file of SAM's format it is that of the published
    name; for such a file given by path, MedSAM's (none) if its name contains "medsam", else its encoder's (SAM's for a
    ViT, none for ``vit_t``), since its content cannot tell.

    A network of another kind (``bundles/methods/unet.json`` and the like) takes its own trained weights only.

    Args:
        network: the network to fill.
        weights: a published name (key of ``PUBLISHED``) or the path of a checkpoint.
        new_head: of a file of SAM's format, leave out what predicts the masks; without effect on a ``SamSegmenter``'s.
        trained: take a ``SamSegmenter``'s checkpoint only, so that nothing that is to be used starts fresh.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when published weights cannot be downloaded.
        ValueError: when the file is damaged, is of another encoder, network or number of classes, or lies on other
            weights than those published.
    """
    if not hasattr(network, "image_encoder"):
        _load_other(network, Path(weights).expanduser())
        return
    if weights in PUBLISHED:
        base, source, normalization = weights, weights, PUBLISHED[weights].normalization
        state = published_state(base, network.encoder)
    else:
        source = Path(weights).expanduser()
        state, base = read_state(source, network.encoder, list(network.state_dict()))
        normalization = "unit" if network.encoder == "vit_t" or "medsam" in source.name.lower() else "sam"

    own = "pixel_mean" in state
    if trained and not own:
        raise ValueError(
            f"{source} holds weights to start from (SAM's format), not those of a trained bundle: train the bundle "
            "with them, or take the models/model.pt of a training"
        )
    if not own:
        state = from_lite_medsam(state) | normalization_buffers(normalization)
    if _encoder_of(state) == network.encoder:
        _fit_classes(state, network, own, new_head, source)
        _fit_positions(state, network)
        if not own:
            state.update({key: fresh for key, fresh in network.state_dict().items() if _ADDED.search(key)})
        elif not any(key.startswith(_FINE) for key in state):
            state.update({key: fresh for key, fresh in network.state_dict().items() if key.startswith(_FINE)})
    _check(state, network, source)
    network.load_state_dict(state)
    network.base = base or network.base
    logger.info("loaded %s into %s at %d px", source, network.encoder, network.image_size)


def _load_other(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(read_state(path, names=list(network.state_dict()))[0])
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit {type(network).__name__}: it was trained with another overlay of bundles/methods, or "
            f"with other options. {error}"
        ) from error


def trained_state(network: SamSegmenter) -> dict[str, Any]:
    """What training has changed: a checkpoint as small as the method, that lies on the published weights.

    It holds every tensor that is not, bit for bit, that of the published weights the network started from, fitted to
    its image size: 20 MB for SAMed's LoRA on ViT-B with 9 classes and 7 MB for SAMed_s, instead of 369 MB.
    :func:`load_weights` fetches and adds the rest. Frozen weights that the network holds in bfloat16 come back in the
    precision of the network that loads them.

    Args:
        network: a network that was built with published weights, or with such a checkpoint.

    Returns:
        ``model``: the tensors; ``base``: name and checksum of the published weights, and what to take from them.

    Raises:
        RuntimeError: when the published weights are no longer there and cannot be downloaded.
        ValueError: when the network did not start from published weights.
    """
    if network.base is None:
        raise ValueError(f"the network starts from no published weights: choose one of {', '.join(PUBLISHED)}")
    state = network.state_dict()
    published = published_state(network.base, network.encoder)
    _fit_positions(published, network)
    same = [k for k, x in state.items() if k in published and torch.equal(x.cpu(), published[k].to(x.dtype))]
    return {
        "model": {key: value for key, value in state.items() if key not in same},
        "base": {"weights": network.base, "checksum": PUBLISHED[network.base].checksum, "keys": same},
    }


def _encoder_of(state: dict[str, torch.Tensor]) -> str | None:
    """Name the encoder a state dict seems to be of, by the shape of its patch embedding and its depth."""
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is not None:
        depth = len({m[1] for key in state if (m := re.match(r"image_encoder\.blocks\.(\d+)\.", key))})
        for name, geometry in VIT_GEOMETRY.items():
            if (geometry["embed_dim"], geometry["depth"]) == (patches.shape[0], depth):
                return name
    patches = state.get("image_encoder.patch_embed.0.conv.weight")
    # MobileSAM's TinyViT has the same names, but patches of 3x3 pixels.
    return "vit_t" if patches is not None and patches.shape == (32, 3, 1, 1) else None


def _fit_classes(
    state: dict[str, torch.Tensor], network: SamSegmenter, own: bool, new_head: bool, source: str | Path
) -> None:
    tokens = state.get("mask_decoder.mask_tokens.weight")
    wanted = network.num_classes
    if tokens is None or (len(tokens) == wanted and (own or not new_head)):
        return
    if own or len(tokens) != 4:
        raise ValueError(
            f"{source} has {len(tokens)} classes, the network has {wanted}: set num_classes={len(tokens)}, "
            "or start from published weights"
        )
    head = tuple(
        f"mask_decoder.{part}." for part in ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
    )
    for key in [key for key in state if key.startswith(head)]:
        del state[key]
    state.update({key: fresh for key, fresh in network.state_dict().items() if key.startswith(head)})


def _fit_positions(state: dict[str, torch.Tensor], network: SamSegmenter) -> None:
    if network.encoder == "vit_t":
        return  # its positions are relative, within windows of fixed size
    key = "image_encoder.pos_embed"
    new = network.image_encoder.pos_embed  # (1, e, e, C)
    if key in state and state[key].shape != new.shape:
        table = state[key].permute(0, 3, 1, 2)
        table = F.interpolate(table, size=new.shape[1:3], mode="bicubic", align_corners=False)
        state[key] = table.permute(0, 2, 3, 1)
    for i, block in enumerate(network.image_encoder.blocks):
        if block.window_size > 0:
            continue
        for axis in ("rel_pos_h", "rel_pos_w"):
            key = f"image_encoder.blocks.{i}.attn.{axis}"
            length = len(getattr(block.attn, axis))  # 2e - 1
            if key in state and len(state[key]) != length:
                table = F.interpolate(state[key].T[None], size=length, mode="linear", align_corners=False)
                state[key] = table[0].T


def _lora_advice(trained: dict[str, Any], wanted: dict[str, Any], source: str | Path) -> str:
    """What to do about weights and a network whose options of LoRA differ."""
    has = f"the network with {_settings(wanted)}" if wanted else "the network has no LoRA"
    if not trained:
        return f"it was trained without LoRA, {has}: leave out the overlay bundles/methods/samed.json"
    overlay = "samed_s" if trained["lora_decoder"] else "lite_lora" if trained["lora_mlp"] else "samed"
    differing = {key: value for key, value in trained.items() if value != (_NO_LORA | wanted)[key]}
    return (
        f"it was trained with LoRA ({_settings(trained)}), {has}: set {_settings(differing, 'network_def#')}, as the "
        f"overlay bundles/methods/{overlay}.json does"
        + ("" if wanted else f", or merge it: python -m medsaga.networks.merge {source} MERGED")
    )


def _adapter_advice(trained: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What to do about weights and a network whose options of adapters differ."""
    has = f"the network with {_settings(wanted)}" if wanted else "the network has no adapters"
    if not trained:
        return f"it was trained without adapters, {has}: leave out the overlay bundles/methods/msa.json"
    overlay = "msa" if trained["adapter_depth"] is None else "msa_3d"
    return (
        f"it was trained with adapters ({_settings(trained)}), {has}: set {_settings(trained, 'network_def#')}, as the "
        f"overlay bundles/methods/{overlay}.json does"
    )


def _channels_advice(trained: torch.Tensor | None, wanted: torch.Tensor | None) -> str:
    """What to do about weights and a network of images with other numbers of channels."""
    has, takes = ("1 or 3" if weight is None else str(weight.shape[1]) for weight in (trained, wanted))
    return (
        f"it was trained on images of {has} channels (sequences), the network takes {takes}: set in_channels, that is "
        "the channel_names of the bundle, as they were in its training, or start from published weights"
    )


def _settings(options: dict[str, Any], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{key}={value}" for key, value in options.items())


def _shape(state: dict[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _check(state: dict[str, torch.Tensor], network: SamSegmenter, source: str | Path) -> None:
    expected = network.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    if not any(problems.values()):
        return
    found = _encoder_of(state)
    details = "; ".join(
        f"{len(keys)} keys {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in problems.items()
        if keys
    )
    if found not in (None, network.encoder):
        advice = f"it seems to be of encoder {found}, the network has {network.encoder}: set encoder={found!r}"
    elif "pixel_mean" in state and _shape(state, _PROJECTION) != _shape(expected, _PROJECTION):
        advice = _channels_advice(state.get(_PROJECTION), expected.get(_PROJECTION))
    elif any(key.startswith(_FINE) for key in state) and network.fine_features is None:
        advice = "it was trained with fine features, the network has none: set network_def#fine_features=true"
    elif (trained := lora_options(state)) != (wanted := lora_options(expected)):
        advice = _lora_advice(trained, wanted, source)
    elif (trained := adapter_options(state)) != (wanted := adapter_options(expected)):
        advice = _adapter_advice(trained, wanted)
    else:
        seems = f"encoder {found}" if found else "no encoder known here"
        advice = (
            f"it seems to be of {seems}, but not as saved by SAM, MedSAM, LiteMedSAM or SamSegmenter; "
            f"the network is SamSegmenter(encoder={network.encoder!r})"
        )
    raise ValueError(f"{source} does not fit: {advice}. {details}")
