"""MC3D-AD: geometry-aware reconstruction of many categories by one model (IJCAI 2025, arXiv 2505.01969)."""

from anomaly3d.models.mc3d_ad.mc3d_ad import MC3DAD

__all__ = ["MC3DAD"]
