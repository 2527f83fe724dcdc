"""Inter-category entanglement (ICE) of trained SeDiR models."""

from anomaly3d.ice.ice import ice

__all__ = ["ice"]
