"""The end of the server: trainings and other tasks that it has started in processes of their own end with it."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import psutil
from monailabel.utils.async_tasks.utils import background_executors, background_processes

__all__ = ["stop_tasks_with_the_server"]

logger = logging.getLogger(__name__)


def stop_tasks_with_the_server() -> None:
    """From now on SIGTERM and SIGINT stop MONAI Label's tasks, and then do what they did before.

    To be called in the main thread, after uvicorn has set its own handlers. Without this, SIGINT waits for the end of a
    training, and SIGTERM leaves it behind. Stopping loses nothing: a training writes elsewhere until its end.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def ended(number: int, frame: FrameType | None, before: object = before) -> None:
            _stop_tasks()
            if callable(before):
                before(number, frame)

        signal.signal(number, ended)


def _stop_tasks() -> None:
    for executor in list(background_executors.values()):
        executor.shutdown(wait=False, cancel_futures=True)  # those that wait for their turn
    for kind, running in list(background_processes.items()):
        for process in list(running.values()):
            logger.info("the server ends and stops a running task: %s", kind)
            try:
                started = psutil.Process(process.pid)
                for child in (*started.children(recursive=True), started):
                    child.kill()
            except psutil.NoSuchProcess:
                continue
