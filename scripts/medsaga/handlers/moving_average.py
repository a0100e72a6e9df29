"""An average of a network's weights over the last steps, which is what is validated and served."""

from __future__ import annotations

import copy

import torch
from ignite.engine import Engine, Events
from torch import nn

__all__ = ["MovingAverage"]


class MovingAverage:
    """Handler of a MONAI trainer that keeps an exponential moving average of the trained weights, or none.

    After each iteration the average moves towards the network's weights by ``momentum``, or by 9 / (10 + t) in
    iteration t where that is larger, so that the initial weights lose their influence after a few iterations. The
    average takes memory for a second copy of the trained weights, in float32 even if the network's weights have fewer
    bits, in which a small step would be lost. Untrained weights are shared with the network: Ignite's ``EMAHandler``
    averages those, too, and so changes their last bits.

    Args:
        network: in training; of ``DistributedDataParallel`` the network inside. Every process keeps the same average.
        momentum: share of the newest weights, above 0 and below 1: 0.01 averages over about the last 100 iterations;
            before iteration 900, over about the last ninth of them. None keeps no average.

    Attributes:
        network: what to validate and to save: the average, in ``eval()``; the network itself where there is none.
        iteration: of the trainer, the last that is done, also of a resumed run.

    Raises:
        ValueError: another momentum.

    Source:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992); as a teacher: Tarvainen and
        Valpola, Mean teachers, arXiv 1703.01780. The larger moves at first: TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, network: nn.Module, momentum: float | None = None) -> None:
        self.momentum = momentum
        self.iteration = 0
        self.network = network
        if momentum is None:
            return
        if not 0 < momentum < 1:
            raise ValueError(f"ema_momentum is {momentum}; it must be above 0 and below 1, or null for no average.")
        self._trained = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        copies = {id(weight): _copy(weight) for weight in self._trained.parameters()}
        copies |= {id(buffer): buffer for buffer in self._trained.buffers()}
        self.network = copy.deepcopy(self._trained, copies).eval()

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: the trainer.
        """
        if self.momentum is not None:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _start(self, engine: Engine) -> None:
        self.iteration = engine.state.iteration
        if self.iteration == 0:  # start from the current weights, which may have been loaded meanwhile
            self._move(1.0)

    def _update(self, engine: Engine) -> None:
        self.iteration = engine.state.iteration
        self._move(max(self.momentum, 9 / (10 + self.iteration)))

    @torch.no_grad()
    def _move(self, share: float) -> None:
        for average, weight in zip(self.network.parameters(), self._trained.parameters()):
            if weight.requires_grad:
                average.lerp_(weight.to(average.dtype), share)
            else:
                average.data = weight.data
        for kept, buffer in zip(self.network.buffers(), self._trained.buffers()):
            kept.data = buffer.data


def _copy(weight: nn.Parameter) -> nn.Parameter:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
