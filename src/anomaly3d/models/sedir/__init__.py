"""SeDiR: a semantically disentangled unified model (arXiv 2603.25159)."""

from anomaly3d.models.sedir.sedir import SeDiR

__all__ = ["SeDiR"]
