"""Run a grid of methods and lay the results side by side."""

from anomaly3d.compare.compare import compare

__all__ = ["compare"]
