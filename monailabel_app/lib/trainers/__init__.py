from .retrain import RetrainTask

__all__ = ["RetrainTask"]
