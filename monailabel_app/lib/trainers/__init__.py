from lib.trainers.retrain import RetrainTask

__all__ = ["RetrainTask"]
