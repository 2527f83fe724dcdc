"""The two forms of a transition, one made of the other."""

from __future__ import annotations

import torch

from anomaly3d.models.mamba3dad.transition import DenseTransition, RotationTransition
from anomaly3d.ops.scan import Rotation


def written_out(rotation: RotationTransition) -> DenseTransition:
    """The same A as a matrix. Raising angle i then equals lowering `skew[2 * i, 2 * i + 1]`."""
    dense = DenseTransition(2 * len(rotation.angles), rotation.scale.item(), rotation.max_norm)
    with torch.no_grad():
        dense.raw_scale.copy_(rotation.raw_scale)
        dense.base.copy_(Rotation(torch.ones_like(rotation.scale), rotation.angles).dense())
    return dense
