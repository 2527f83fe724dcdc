"""A cloud without extent has no scale to measure in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import InputError


def check_extent(cloud: Float[Tensor, "N 3"], name: str) -> None:
    """Raise InputError that names the cloud where all its points are one."""
    if torch.equal(cloud.amin(0), cloud.amax(0)):
        raise InputError(f"{name}: all points coincide, so the cloud has no scale; remove it from the data set")
