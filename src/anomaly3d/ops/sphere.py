"""The sphere about the mean of a cloud that holds all its points."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def centre_and_radius(xyz: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "3"], float]:
    """Mean of the points, summed in float64, and the distance of the one farthest from it; in the unit of `xyz`."""
    centre = xyz.double().mean(0).to(xyz.dtype)
    return centre, _farthest(xyz, centre)


def radius_about_mean(xyz: Float[Tensor, "N 3"]) -> float:
    """The radius alone, about a mean that is summed in the precision of `xyz`.

    Its last bits may differ from those of `centre_and_radius`. It is the unit of registration's reaches and residuals:
    another would move every result that has been measured.
    """
    return _farthest(xyz, xyz.mean(0))


def _farthest(xyz: Tensor, centre: Tensor) -> float:
    return float((xyz - centre).norm(dim=1).max())
