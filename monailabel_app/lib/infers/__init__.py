from lib.infers.automatic import AutomaticTask
from lib.infers.finished import FinishedObjects
from lib.infers.prompted import PromptedTask

__all__ = ["AutomaticTask", "FinishedObjects", "PromptedTask"]
