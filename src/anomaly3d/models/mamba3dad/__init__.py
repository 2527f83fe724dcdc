"""Mamba3dAD: multi-scale tokens, learned ordering, state-space adapter."""

from anomaly3d.models.mamba3dad.mamba3dad import Mamba3dAD

__all__ = ["Mamba3dAD"]
