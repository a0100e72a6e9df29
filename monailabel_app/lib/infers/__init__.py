from .automatic import AutomaticTask
from .finished import FinishedObjects
from .prompted import PromptedTask

__all__ = ["AutomaticTask", "FinishedObjects", "PromptedTask"]
