"""A network as files that run without this package: TorchScript and ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata

from medsaga.networks import SamSegmenter

from .exported import openvino_core
from .portable import AutomaticSegmenter, portable

__all__ = ["INPUT", "OUTPUT", "example_image", "run_onnx", "write_onnx", "write_torchscript"]

INPUT, OUTPUT = "image", "pred"
_LARGEST_PROTOBUF = 1.8e9  # bytes; larger files of ONNX keep their weights beside them


def example_image(channels: int, size: int, images: int = 1, seed: int = 0) -> torch.Tensor:
    """An image of noise in [0, 1]: (images, channels, size, size)."""
    return torch.rand(images, channels, size, size, generator=torch.Generator().manual_seed(seed))


def write_torchscript(network: SamSegmenter, path: Path, channels: int, metadata: dict[str, Any]) -> None:
    """Write a network without prompts as TorchScript, for any number of images, on any device.

    Args:
        network: in ``precision="fp32"``.
        path: of the file, with the suffix ``.ts``.
        channels: of its images.
        metadata: of the bundle, put into the file as MONAI does.

    Raises:
        ValueError: the network is of another precision.
    """
    module = AutomaticSegmenter(portable(network))
    # with two images, so that no traced part depends on 1
    with warnings.catch_warnings(), torch.no_grad():
        # the tracer warns about checks of shapes that hold for all inputs, and that it has a successor
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, example_image(channels, network.image_size, 2), check_trace=False)
        save_net_with_metadata(traced, str(path), meta_values=metadata)


def write_onnx(network: SamSegmenter, path: Path, channels: int) -> None:
    """Write a network without prompts as ONNX, with input ``image`` and output ``pred``, for any number of images.

    Args:
        network: in ``precision="fp32"``.
        path: of the file; weights of more than 2 GB are stored beside it.
        channels: of its images.

    Raises:
        RuntimeError: packages are missing, with what to install.
        ValueError: the network is of another precision.
    """
    try:
        import onnxscript  # noqa: F401  torch's exporter wants it
    except ImportError as error:
        raise RuntimeError(
            f"ONNX cannot be written ({error}). Run pip install 'medsaga[export]', or leave ONNX out with --forms ts."
        ) from error
    module = AutomaticSegmenter(portable(network))
    size = sum(x.numel() * x.element_size() for x in module.state_dict().values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example_image(channels, network.image_size, 2),),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            external_data=size > _LARGEST_PROTOBUF,
            verbose=False,
        )


def run_onnx(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Run an ONNX file with one input by OpenVINO in float32.

    Raises:
        RuntimeError: OpenVINO is not installed, or cannot read the file.
    """
    core = openvino_core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([image.numpy()])[0])
