"""A cloud without extent, or with a point out of all proportion, has no scale to measure in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import InputError

_FAR = 1000.0
"""In distances of the median point; one that lies farther out is none of the object's [ours]."""


def check_extent(cloud: Float[Tensor, "N 3"], name: str) -> None:
    """Raise InputError that names the cloud where all its points are one, or where one lies far from all others."""
    if torch.equal(cloud.amin(0), cloud.amax(0)):
        raise InputError(f"{name}: all points coincide, so the cloud has no scale; remove it from the data set")
    distance = (cloud - cloud.median(dim=0).values).norm(dim=1)
    typical, farthest = float(distance.median()), float(distance.max())
    if farthest > _FAR * typical > 0:
        raise InputError(
            f"{name}: a point lies {farthest / typical:.3g} times as far from the middle as the median point, so the "
            "cloud's size means nothing; remove it from the file"
        )
