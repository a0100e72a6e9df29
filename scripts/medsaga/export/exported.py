"""An exported network, with the interface of the network it was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from .convert import BOX_DECODER, DECODER, DESCRIPTION, ENCODER, import_openvino

__all__ = ["RUN_PRECISIONS", "ExportedSegmenter", "openvino_core"]

RUN_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class ExportedSegmenter:
    """A network written by :func:`~medsaga.export.export_network`, run by OpenVINO on a CPU.

    It stands in for a :class:`~medsaga.networks.SamSegmenter` in ``eval()`` in all inferers of this project:
    ``SliceBatchInferer``, ``BoxInferer``, and ``PromptedSlices`` with boxes. Points and training need the network
    itself. Each part is compiled when it is first used. Use it from one thread at a time.

    Args:
        folder: with the exported network.
        precision: ``fp32``; or ``bf16``, for CPUs with AMX: results differ as those of PyTorch's bf16 do.
        threads: of OpenVINO; None for as many as torch has.

    Raises:
        FileNotFoundError: the folder holds no exported network.
        RuntimeError: OpenVINO is not installed.
        ValueError: the precision is unknown.
    """

    def __init__(self, folder: str | Path, precision: str = "fp32", threads: int | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).is_file():
            raise FileNotFoundError(f"{self.folder} holds no {DESCRIPTION}: make it with python -m medsaga.export.")
        if precision not in RUN_PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown: choose one of {', '.join(RUN_PRECISIONS)}")
        description = json.loads((self.folder / DESCRIPTION).read_text())
        self.encoder: str = description["encoder"]
        self.image_size: int = description["image_size"]
        self.num_classes: int = description["num_classes"]
        self.in_channels: int = description.get("in_channels", 3)  # earlier exports do not say
        self.head: str = description["head"]
        self.trained_plane: str | None = description.get("trained_plane")
        self.pixel_mean = torch.zeros(3, 1, 1)  # the encoder file normalises by itself; inferers read the device here
        self._options = {
            # without this hint OpenVINO uses bf16 by default where the CPU supports it
            "INFERENCE_PRECISION_HINT": RUN_PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }

    def __call__(
        self,
        image: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Class logits, as :meth:`medsaga.networks.SamSegmenter.forward` without points."""
        return self.decode(self.encode(image), points, boxes)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image embeddings, as :meth:`medsaga.networks.SamSegmenter.encode`.

        Shape:
            - image: (B, C, S, S), for C = 3 also (B, 1, S, S)
            - output: (B, 256, m / 4, m / 4), or as the network's own

        Raises:
            ValueError: when the image has another size or number of channels.
        """
        size = self.image_size
        channels = (1, 3) if self.in_channels == 3 else (self.in_channels,)
        if image.ndim != 4 or image.shape[1] not in channels or image.shape[2:] != (size, size):
            wanted = " or ".join(map(str, channels))
            raise ValueError(f"image has shape {tuple(image.shape)}: it must be (B, {wanted}, {size}, {size})")
        # one at a time: a batch saves no time per image, and its memory grows in proportion
        return torch.cat([_run(self._encoder, item) for item in image.expand(-1, self.in_channels, -1, -1).split(1)])

    def decode(
        self,
        embedding: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Class logits, as :meth:`medsaga.networks.SamSegmenter.decode` without points.

        Shape:
            - embedding: as of :meth:`encode`; boxes: (P, 4); P = B, or B = 1
            - output: (P, k, m, m); without boxes (B, k, m, m)

        Raises:
            ValueError: points are given, or boxes of another shape or number.
        """
        if points is not None:
            raise ValueError("an exported network takes no points: give boxes, or use the network itself.")
        if boxes is None:
            return torch.cat([_run(self._decoder, item) for item in embedding.split(1)])
        if boxes.ndim != 2 or boxes.shape[1] != 4 or len(embedding) not in (1, len(boxes)):
            raise ValueError(
                f"boxes have shape {tuple(boxes.shape)} for {len(embedding)} images: they must be (P, 4), one for each "
                "image or several for one"
            )
        if len(embedding) == 1:
            return _run(self._box_decoder, embedding, boxes)
        pairs = zip(embedding.split(1), boxes.split(1))
        return torch.cat([_run(self._box_decoder, *pair) for pair in pairs])

    @cached_property
    def _encoder(self) -> Any:
        return self._compile(ENCODER, (1, self.in_channels, self.image_size, self.image_size))

    @cached_property
    def _decoder(self) -> Any:
        return self._compile(DECODER, self._encoder.output(0).shape)

    @cached_property
    def _box_decoder(self) -> Any:
        return self._compile(BOX_DECODER)

    def _compile(self, file: str, shape: Sequence[int] | None = None) -> Any:
        network = openvino_core().read_model(self.folder / file)
        if shape is not None:  # OpenVINO plans better for a shape that it knows
            network.reshape(list(shape))
        return openvino_core().compile_model(network, "CPU", self._options)


@cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the whole process.

    With each core, OpenVINO 2026.4 gives the main thread a new stack for signals. When a core is deleted, it restores
    the stack of the core before. After several deletions this stack is freed memory, and the next signal that Python
    handles, such as the end of a child process, ends the process.
    """
    return import_openvino().Core()


def _run(compiled: Any, *inputs: torch.Tensor) -> torch.Tensor:
    arrays = [torch.as_tensor(x).float().contiguous().numpy() for x in inputs]
    return torch.from_numpy(compiled(arrays)[0])
