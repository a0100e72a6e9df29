from .automatic import AutomaticTask
from .prompted import PromptedTask

__all__ = ["AutomaticTask", "PromptedTask"]
