"""A network as OpenVINO files: image encoder, decoder without prompts, decoder with boxes."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from medsaga.files import write_json
from medsaga.networks import SamSegmenter

from .portable import portable

__all__ = ["BOX_DECODER", "DECODER", "DESCRIPTION", "ENCODER", "export_network", "import_openvino"]

ENCODER, DECODER, BOX_DECODER = "encoder.xml", "decoder.xml", "box_decoder.xml"
DESCRIPTION = "network.json"


def import_openvino() -> ModuleType:
    """OpenVINO, which only exported networks need, without its telemetry.

    The telemetry would report the import and each converted operation to Google Analytics, each time by a fork of this
    process.

    Raises:
        RuntimeError: when it is not installed, with what to install.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # as if it were not installed, which OpenVINO allows
    try:
        import openvino
    except ImportError as error:
        raise RuntimeError(
            f"openvino cannot be imported ({error}). Exported networks need it: pip install 'medsaga[export]'"
        ) from error
    return openvino


def export_network(network: SamSegmenter, folder: str | Path, head: str = "classes") -> None:
    """Write a network for :class:`~medsaga.export.ExportedSegmenter`.

    The three parts are files of OpenVINO's format (``.xml`` and ``.bin``, float32), beside ``network.json``. The folder
    appears when all of it is written.

    Args:
        network: in ``precision="fp32"``; it is not changed.
        folder: to write; it must not be there yet.
        head: what the network's masks are, see :class:`~medsaga.inferers.PromptedSlices`; kept in ``network.json``.

    Raises:
        FileExistsError: the folder is there.
        RuntimeError: OpenVINO is not installed.
        ValueError: the network is of another precision.
    """
    openvino = import_openvino()
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: name another folder, or remove it.")
    trained_plane = network.trained_plane
    network = portable(network)
    size = network.image_size
    image = torch.zeros(2, network.channel_counts[-1], size, size)
    # with numbers of images and boxes other than 1, so that no traced part depends on 1
    with torch.no_grad():
        embedding = network.encode(image)
    boxes = torch.tensor([[0.0, 0.0, size / 2, size / 2]]).repeat(3, 1)
    parts = {
        ENCODER: (_Encoder(network), image),
        DECODER: (_Decoder(network), embedding),
        BOX_DECODER: (_Decoder(network), (embedding[:1], boxes)),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    writing = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        for file, (part, example) in parts.items():
            with warnings.catch_warnings(), torch.no_grad():
                # the tracer warns about checks of shapes that hold for all inputs
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                # OpenVINO would trace it, too: three times, for a check that the tests do on the results
                traced = torch.jit.trace(part.eval(), example, check_trace=False)
                converted = openvino.convert_model(traced, example_input=example)
            openvino.save_model(converted, writing / file, compress_to_fp16=False)
        description = {
            "encoder": network.encoder,
            "image_size": size,
            "num_classes": network.num_classes,
            "in_channels": image.shape[1],
            "head": head,
            "trained_plane": trained_plane,
        }
        write_json(writing / DESCRIPTION, description)
        os.replace(writing, folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


class _Encoder(nn.Module):
    def __init__(self, network: SamSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.encode(image)


class _Decoder(nn.Module):
    def __init__(self, network: SamSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedding: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
        return self.network.decode(embedding, boxes=boxes)
