"""Comparisons that print the project's figures: ``python -m medsaga.experiments.NAME --help``."""
