from lib.strategies.tasks import build_strategies, start_background_scoring

__all__ = ["build_strategies", "start_background_scoring"]
