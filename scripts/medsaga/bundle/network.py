"""The network that a command is to use: a trained bundle's, or published weights with SAM's own head."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser

from medsaga.networks import PUBLISHED, SamSegmenter, load_weights

from .root import bundle_folder

__all__ = ["load_network"]

_SAM_MASKS = 4  # masks that SAM's own head gives
_LITE_SIZE = 256  # pixels that LiteMedSAM was trained at
_SAM_SIZE = 1024


def load_network(
    bundle: str | None = None, model: str | Path | None = None, weights: str = "lite_medsam"
) -> tuple[SamSegmenter, str]:
    """Build a network with its weights, in ``eval()``.

    Args:
        bundle: name or folder of a bundle; its ``inference.json`` describes the network.
        model: weights of the bundle's training; None for its ``models/model.pt``.
        weights: published weights to take where no bundle is named, at the size they were trained at.

    Returns:
        Network, and what its masks mean: ``head`` of :class:`~medsaga.inferers.PromptedSlices`.

    Raises:
        FileNotFoundError: no such bundle or model.
        ValueError: unknown published weights, a model without a bundle, or a model that does not fit the bundle.
    """
    if bundle is None:
        if model is not None:
            raise ValueError(f"{model} is given without a bundle: name its bundle with --bundle.")
        if weights not in PUBLISHED:
            raise ValueError(f"weights {weights!r} are unknown: choose one of {', '.join(PUBLISHED)}")
        encoder = PUBLISHED[weights].encoder
        size = _LITE_SIZE if encoder == "vit_t" else _SAM_SIZE
        network = SamSegmenter(encoder, size, _SAM_MASKS, weights)
        return network.eval(), "sam" if weights.startswith("sam_") else "sam_boxes"
    root = bundle_folder(bundle, "configs/inference.json")
    config = ConfigParser()
    config.read_config(str(root / "configs" / "inference.json"))
    network = config.get_parsed_content("network_def")
    load_weights(network, model or root / "models" / "model.pt", trained=True)
    return network.eval(), "classes"
