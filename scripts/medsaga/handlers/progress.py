"""One progress bar for a whole run."""

from __future__ import annotations

import sys

from ignite.engine import Engine, Events
from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """Ignite handler: a bar over all iterations of all epochs, with the time left and the last loss.

    Ignite's own ``ProgressBar`` starts a new bar each epoch, and few-shot training has epochs of a few seconds.
    """

    def attach(self, engine: Engine) -> None:
        """
        Args:
            engine: trainer or evaluator.
        """
        self.bar: tqdm | None = None
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.bar.close())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._interrupted)

    def _start(self, engine: Engine) -> None:
        state = engine.state
        self.bar = tqdm(
            total=state.max_epochs * state.epoch_length if state.epoch_length else None,
            initial=state.iteration,
            unit="it",
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def _update(self, engine: Engine) -> None:
        self.bar.set_description(f"Epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
        output = engine.state.output
        # the engines decollate: each sample of the batch carries the batch's loss
        if output and "loss" in output[0]:
            self.bar.set_postfix(loss=f"{float(output[0]['loss']):.4f}", refresh=False)
        self.bar.update()

    def _interrupted(self, engine: Engine, error: BaseException) -> None:
        if self.bar is not None:  # another handler may fail as the run starts
            self.bar.close()
        raise error
