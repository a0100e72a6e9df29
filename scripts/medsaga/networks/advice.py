"""Why weights do not fit a network, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapters import adapter_options
from .fitting import FINE_FEATURES, encoder_of
from .lora import lora_options

__all__ = ["check_fit"]

_PROJECTION = "channel_projection.weight"
_NO_LORA = {"rank": None, "projections": "qv", "mlp": False, "decoder": False}


def _lora_advice(trained: dict[str, Any], wanted: dict[str, Any], source: str | Path) -> str:
    """What to do if the LoRA options of the weights and of the network differ."""
    has = f"but the network has {_settings(wanted, 'lora#')}" if wanted else "but the network has no LoRA"
    if not trained:
        return f"it was trained without LoRA, {has}: leave out the overlay bundles/methods/samed.json"
    overlay = "samed_s" if trained["decoder"] else "lite_lora" if trained["mlp"] else "samed"
    differing = {key: value for key, value in trained.items() if value != (_NO_LORA | wanted)[key]}
    return (
        f"it was trained with LoRA ({_settings(trained)}), {has}: set {_settings(differing, 'network_def#lora#')}, as "
        f"the overlay bundles/methods/{overlay}.json does"
        + ("" if wanted else f", or merge LoRA into the weights: python -m medsaga.networks.merge {source} MERGED")
    )


def _adapter_advice(trained: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What to do if the adapter options of the weights and of the network differ."""
    has = f"but the network has {_settings(wanted, 'adapters#')}" if wanted else "but the network has no adapters"
    if not trained:
        return f"it was trained without adapters, {has}: leave out the overlay bundles/methods/msa.json"
    overlay = "msa" if trained["depth"] is None else "msa_3d"
    return (
        f"it was trained with adapters ({_settings(trained)}), {has}: set "
        f"{_settings(trained, 'network_def#adapters#')}, as the overlay bundles/methods/{overlay}.json does"
    )


def _channels_advice(trained: torch.Tensor | None, wanted: torch.Tensor | None) -> str:
    """What to do if the weights and the network are for images with different numbers of channels."""
    has, takes = ("1 or 3" if weight is None else str(weight.shape[1]) for weight in (trained, wanted))
    return (
        f"it was trained on images of {has} channels (sequences), but the network takes {takes}: set in_channels (in a "
        "bundle: channel_names) as in that training, or start from published weights"
    )


def _settings(options: dict[str, Any], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{key}={value}" for key, value in options.items())


def _shape(state: dict[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def check_fit(state: dict[str, torch.Tensor], network: nn.Module, source: str | Path) -> None:
    """Compare a state dict with what a network takes.

    Args:
        state: to be loaded, fitted to the network.
        network: a :class:`~medsaga.networks.SamSegmenter`.
        source: of the state, for the error.

    Raises:
        ValueError: keys are missing, unexpected or of another shape; the message says the likely cause.
    """
    expected = network.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    if not any(problems.values()):
        return
    found = encoder_of(state)
    details = "; ".join(
        f"{len(keys)} keys {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in problems.items()
        if keys
    )
    if found not in (None, network.encoder):
        advice = f"it seems to be of encoder {found}, but the network has {network.encoder}: set encoder={found!r}"
    elif "pixel_mean" in state and _shape(state, _PROJECTION) != _shape(expected, _PROJECTION):
        advice = _channels_advice(state.get(_PROJECTION), expected.get(_PROJECTION))
    elif any(key.startswith(FINE_FEATURES) for key in state) and network.fine_features is None:
        advice = "it was trained with fine features, but the network has none: set network_def#fine_features=true"
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
