"""A bundle's own training on random images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.optim import Optimizer

from .accounting import MemoryAccounting

__all__ = ["Training"]

# Batches before giving up: many, because a GradScaler skips steps until it has found its scale. MONAI also steps at an
# epoch's end, so accumulation must never get there.
_EPOCH = 10_000


class Training:
    """The network, optimizer, loss and trainer of a bundle, and random batches in place of its data.

    All are built from the config, so what is measured is what is trained, mixed precision, accumulation of gradients
    and the average of the weights included. Weights are fresh and other handlers (checkpoints, validation, logs) are
    left out: a step's memory depends on neither.

    Args:
        parser: a bundle's config, see :meth:`medsaga.memory.Setup.parser`.
    """

    def __init__(self, parser: ConfigParser) -> None:
        parser["weights"] = None
        parser["prompt_probability"] = 0  # prompts are a few tokens more, and need labels that a prediction lacks
        values = map(parser.get_parsed_content, ("batch_size", "image_size", "num_classes", "channel_names"))
        semi = "unlabelled" in parser
        batches = _RandomBatches(*values, ("image", "unlabelled", "weak") if semi else ("image",))
        if semi:
            parser["rampup_steps"] = 0  # each batch has slices without labels, as after that many steps
        parser["train#trainer#train_data_loader"] = batches
        parser["train#trainer#train_handlers"] = ["@average"]
        parser["train#trainer#epoch_length"] = _EPOCH
        parser["train#trainer#max_epochs"] = 1
        self._trainer: SupervisedTrainer = parser.get_parsed_content("train#trainer")
        self._trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop)
        self.device: torch.device = parser.get_parsed_content("device")
        self.network: nn.Module = self._trainer.network
        self.averaged: nn.Module = parser.get_parsed_content("average").network
        self.optimizer: Optimizer = self._trainer.optimizer
        self.optimizer.register_step_post_hook(self._count)
        self._steps = self._wanted = 0

    def accounting(self) -> MemoryAccounting:
        """What follows the tensors of this training."""
        return MemoryAccounting(self.network, self.optimizer, self.device, self.averaged)

    def run(self, steps: int) -> None:
        """Train until the optimizer has made this many steps more.

        Raises:
            RuntimeError: when it has not after many batches, because no gradient was finite.
        """
        self._wanted = self._steps + steps
        # as if never run: a whole number of accumulations is done
        self._trainer.state.epoch = self._trainer.state.iteration = 0
        self._trainer.run()
        if self._steps < self._wanted:
            raise RuntimeError(f"no gradient was finite in {self._trainer.state.iteration} batches")

    def _count(self, *_: object) -> None:
        self._steps += 1

    def _stop(self) -> None:
        if self._steps >= self._wanted:
            self._trainer.terminate()


class _RandomBatches:
    """Batches as a bundle's data loader yields them, without end."""

    def __init__(
        self, batch_size: int, image_size: int, num_classes: int, channel_names: Sequence[str], images: Sequence[str]
    ) -> None:
        self.images = images
        self.image_shape = (batch_size, len(channel_names), image_size, image_size)
        self.label_shape = (batch_size, 1, image_size, image_size)
        self.num_classes = num_classes

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            label = torch.randint(self.num_classes, self.label_shape, dtype=torch.uint8)
            yield {**{key: torch.rand(self.image_shape) for key in self.images}, "label": label}
