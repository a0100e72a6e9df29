"""Load weights and checkpoints into a network, and take what a training has changed as a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medsaga.records import trained_plane

from .advice import check_fit
from .fitting import encoder_of, fit_classes, fit_positions, start_fresh
from .published import PUBLISHED
from .saved_state import normalization_buffers, published_state, read_state
from .tiny_vit import from_lite_medsam

__all__ = ["load_weights", "trained_state"]

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, weights: str | Path, new_head: bool = False, trained: bool = False) -> None:
    """Load published weights or a checkpoint file into a network, strictly.

    The file may be in SAM's, MedSAM's or LiteMedSAM's format, or a checkpoint of a ``SamSegmenter``, of
    :func:`trained_state` or of SAMed (:func:`read_state`). It may be bare, or wrapped and with prefixed keys as other
    programs save it (:func:`~medsaga.networks.checkpoint_files.find_state`). Loading adapts three things and nothing
    else:

    * Image size: the absolute positions are interpolated bicubically and the relative positions of global attention
      blocks linearly (SAMed, arXiv 2304.13785, section 4.1). Tables of windowed blocks do not depend on the size.
    * LoRA and adapters: a network with LoRA or adapters takes weights in SAM's format as its frozen part; LoRA and
      adapters start fresh. So does the projection of images with other than 1 or 3 channels. Fine features start fresh
      with any weights that have none, and then change no logit.
    * Classes: SAM's four mask tokens are guesses at one object, not classes. With ``new_head``, or when the network has
      another number of classes, the network's own fresh mask tokens, hypernetworks and IoU head stay, as in SAMed.
      (Copies of SAM's start from confident, wrong logits: on 100 hippocampus slices the mean loss of steps 100 to 120
      was 0.54 with them and 0.26 with fresh ones, ``vit_t`` at 112 px, batch 4.) Otherwise a network of four classes
      gives SAM's own four masks.

    Normalisation: a ``SamSegmenter`` checkpoint carries its own. Published weights in SAM's format have the one of
    their name. For such a file given by path, the content does not say: it is MedSAM's (none) if the file's name
    contains "medsam", else its encoder's (SAM's for a ViT, none for ``vit_t``).

    A network of another kind (``bundles/methods/unet.json`` and the like) takes its own trained weights only.

    Args:
        network: the :class:`~medsaga.networks.SamSegmenter` to fill, or a network of another kind.
        weights: a published name (key of ``PUBLISHED``) or the path of a checkpoint.
        new_head: leave out the layers that predict the masks, if the file is in SAM's format; without effect on a
            checkpoint of a ``SamSegmenter``.
        trained: take only a checkpoint of a ``SamSegmenter``, so that no part starts fresh; also set the network's
            ``trained_plane``, which says whether it has learnt from all planes.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when published weights cannot be downloaded.
        ValueError: when the file is damaged, is of another encoder, network or number of classes, or is based on
            weights other than the published ones.
    """
    if hasattr(network, "image_encoder"):
        _load_segmenter(network, weights, new_head, trained)
    else:
        _load_other(network, Path(weights).expanduser())
    if trained:
        network.trained_plane = trained_plane(weights)


def _load_segmenter(network: nn.Module, weights: str | Path, new_head: bool, trained: bool) -> None:
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
            f"{source} holds weights to start a training from (SAM's format), not those of a trained bundle: train the "
            "bundle with them, or use the models/model.pt of a training"
        )
    if not own:
        state = from_lite_medsam(state) | normalization_buffers(normalization)
    if encoder_of(state) == network.encoder:
        fit_classes(state, network, own, new_head, source)
        fit_positions(state, network)
        start_fresh(state, network, own)
    check_fit(state, network, source)
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


def trained_state(network: nn.Module) -> dict[str, Any]:
    """What training has changed: a small checkpoint, to be loaded together with the published weights.

    It holds every tensor that differs in any bit from the published weights that the network started from (fitted to
    its image size): 20 MB for SAMed's LoRA on ViT-B with 9 classes and 7 MB for SAMed_s, instead of 369 MB.
    :func:`load_weights` fetches and adds the rest. Frozen weights that the network holds in bfloat16 come back in the
    precision of the network that loads them.

    Args:
        network: a :class:`~medsaga.networks.SamSegmenter` that was built with published weights, or with such a
            checkpoint.

    Returns:
        ``model``: the tensors; ``base``: name and checksum of the published weights, and what to take from them.

    Raises:
        RuntimeError: when the published weights are no longer there and cannot be downloaded.
        ValueError: when the network did not start from published weights.
    """
    if network.base is None:
        raise ValueError(f"the network did not start from published weights: choose one of {', '.join(PUBLISHED)}")
    state = network.state_dict()
    published = published_state(network.base, network.encoder)
    fit_positions(published, network)
    same = [k for k, x in state.items() if k in published and torch.equal(x.cpu(), published[k].to(x.dtype))]
    return {
        "model": {key: value for key, value in state.items() if key not in same},
        "base": {"weights": network.base, "checksum": PUBLISHED[network.base].checksum, "keys": same},
    }
