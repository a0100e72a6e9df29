"""Checks that run the network: its input and output, whether weights fit, whether exported forms agree."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from monai.utils import get_equivalent_dtype

from medsaga.failures import root_cause

from .bundle import Bundle
from .findings import SkippedError, skip_without

__all__ = ["inputs_and_outputs", "onnx", "torchscript", "weights_load"]

_TOLERANCE = 1e-3  # of the largest value of the output
_LISTED = 3


def inputs_and_outputs(bundle: Bundle) -> Iterator[str]:
    """The network takes what ``metadata.json`` describes and gives what it describes."""
    bundle.needs_run()
    output = next(iter(bundle.metadata["network_data_format"]["outputs"].values()))
    with torch.no_grad():
        given = bundle.network(bundle.example)
    if not isinstance(given, torch.Tensor):
        raise SkippedError(f"the network gives a {type(given).__name__}, which metadata.json cannot describe")
    where = "metadata.json, network_data_format#outputs:"
    if given.shape[1] != output["num_channels"]:
        yield f"{where} num_channels is {output['num_channels']}, but the network gives {given.shape[1]}."
    shape = output.get("spatial_shape")
    # a network that takes any size gives any
    if bundle.own and shape and list(given.shape[2:]) != list(shape):
        yield f"{where} spatial_shape is {shape}, but the network gives {list(given.shape[2:])}."
    if given.dtype != get_equivalent_dtype(output["dtype"], torch.Tensor):
        yield f"{where} dtype is {output['dtype']}, but the network gives {str(given.dtype).removeprefix('torch.')}."


def weights_load(bundle: Bundle) -> Iterator[str]:
    """``models/model.pt`` holds tensors only, and all of the network's."""
    bundle.needs_run()
    skip_without((bundle.root / "models" / "model.pt").is_file(), "there is no models/model.pt yet")
    expected, found = bundle.network.state_dict(), bundle.weights
    for what, keys in {
        "lacks": [key for key in expected if key not in found],
        "has, unlike the network,": [key for key in found if key not in expected],
        "has with another shape": [k for k in expected if k in found and found[k].shape != expected[k].shape],
    }.items():
        if keys:
            listed = ", ".join(keys[:_LISTED]) + (", ..." if len(keys) > _LISTED else "")
            yield f"models/model.pt {what} {len(keys)} keys ({listed}): it belongs to another network or config."
    if broken := [key for key, x in found.items() if x.is_floating_point() and not torch.isfinite(x).all()]:
        yield f"models/model.pt has NaN or infinity in {', '.join(broken[:_LISTED])}: take weights of an earlier epoch."


def torchscript(bundle: Bundle) -> Iterator[str]:
    """``models/model.ts`` gives what the network with ``models/model.pt`` gives."""
    bundle.needs_run()
    path = bundle.root / "models" / "model.ts"
    skip_without(path.is_file(), "there is no models/model.ts")
    script = torch.jit.load(str(path), map_location="cpu").eval()
    with torch.no_grad():
        yield from _compared("models/model.ts", script(bundle.example), bundle.trained_output)


def onnx(bundle: Bundle) -> Iterator[str]:
    """``models/model.onnx`` gives what the network with ``models/model.pt`` gives."""
    from medsaga.export.model_files import run_onnx

    bundle.needs_run()
    path = bundle.root / "models" / "model.onnx"
    skip_without(path.is_file(), "there is no models/model.onnx")
    try:
        given = run_onnx(path, bundle.example)
    except RuntimeError as error:
        if isinstance(error.__cause__, ImportError):
            raise SkippedError(str(root_cause(error))) from error
        raise
    yield from _compared("models/model.onnx", given, bundle.trained_output)


def _compared(name: str, given: torch.Tensor, expected: torch.Tensor) -> Iterator[str]:
    again = "Export it again from models/model.pt."
    if given.shape != expected.shape:
        yield f"{name} gives the shape {tuple(given.shape)}, but the network {tuple(expected.shape)}. {again}"
        return
    difference = float((given - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE:
        yield f"{name} differs from the network by {difference:.1e} of its largest output. {again}"
