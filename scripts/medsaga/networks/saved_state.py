"""Checkpoint files as state dicts: wrappers are opened, and tensors that a file lacks come from published weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medsaga.checkpoints import read_checkpoint

from .checkpoint_files import SAM_PARTS, find_state
from .lora_files import from_samed, samed_encoder
from .published import PUBLISHED, weights_path
from .tiny_vit import from_lite_medsam

__all__ = ["NORMALIZATION", "normalization_buffers", "published_state", "read_state"]

# Mean and deviation per channel, in units of intensities in [0, 1].
NORMALIZATION = {
    "sam": ((123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

_DECODER_TRANSFORMER = "mask_decoder.transformer."


def read_state(
    path: Path, encoder: str | None = None, names: Sequence[str] = SAM_PARTS
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Read a checkpoint file, and take the tensors that it leaves out from the published weights it is based on.

    A file of :func:`trained_state` names these weights and their checksum. SAMed's and SAMed_s's files do not: they are
    assumed to be based on SAM's weights for their encoder, which is the default of SAMed's code. Their images are
    assumed to be in [0, 1] and not normalised, as in that code.

    Args:
        path: the file.
        encoder: encoder that published weights must have, so that none are fetched that cannot fit; None for any.
        names: keys of the network's state dict, used to find the wrappers and prefixes of the file.

    Returns:
        State dict under the file's names, without a prefix; name of the published weights that it is based on, or None.

    Raises:
        FileNotFoundError: when the file does not exist.
        RuntimeError: when the published weights cannot be downloaded.
        ValueError: when the file is damaged or holds no state dict, or several, or is based on weights unknown here or
            of another encoder.
    """
    content = _load(path)
    state = find_state(content, names, path)
    if isinstance(content.get("base"), dict):
        base, checksum, keys = (content["base"].get(key) for key in ("weights", "checksum", "keys"))
        if base not in PUBLISHED or PUBLISHED[base].checksum != checksum:
            known = ", ".join(f"{name} ({published.checksum})" for name, published in PUBLISHED.items())
            raise ValueError(
                f"{path} holds only what training changed in the weights {base} ({checksum}). They must be one of: "
                f"{known}"
            )
        published = published_state(base, encoder)
        return {key: published[key] for key in keys or () if key in published} | state, base
    if (adapted := samed_encoder(state)) is not None:
        base = f"sam_{adapted}"
        published = published_state(base, encoder)
        frozen = {key: x for key, x in published.items() if key.startswith(("image_encoder.", _DECODER_TRANSFORMER))}
        return frozen | from_samed(state) | normalization_buffers("unit"), base
    return state, None


def published_state(name: str, encoder: str | None) -> dict[str, torch.Tensor]:
    """Published weights under this project's names."""
    published = PUBLISHED[name]
    if encoder not in (None, published.encoder):
        raise ValueError(
            f"weights {name!r} are of encoder {published.encoder}, but the network has {encoder}: "
            f"set encoder={published.encoder!r}, or choose weights of {encoder}"
        )
    return from_lite_medsam(read_state(weights_path(name))[0])


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. If it is a bundle's model, train the bundle first; published weights are "
            f"{', '.join(PUBLISHED)}."
        )
    return read_checkpoint(path)


def normalization_buffers(name: str) -> dict[str, torch.Tensor]:
    """The buffers of a ``SamSegmenter`` that normalise intensities."""
    mean, std = NORMALIZATION[name]
    return {"pixel_mean": torch.tensor(mean).view(3, 1, 1), "pixel_std": torch.tensor(std).view(3, 1, 1)}
