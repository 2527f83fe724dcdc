"""Adaptive geometry-aware masking (AGMA): which patches attention may look at, by how the surface varies there."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anomaly3d.models.components.geometry import geometric_variation

_CURVATURE_WEIGHT = 10.0


def guide(centres: Float[Tensor, "B G 3"], radius_factor: float = 7.0) -> Float[Tensor, "B G"]:
    """`v = dN + 10 dC`: mean change of the normal (radians) and of the curvature around each centre.

    The variations are the paper's, over the centres within an adaptive radius; their weights and the radius, 7 mean
    distances between neighbouring centres, are the public code's. A centre is not counted among its own neighbours
    [ours: its difference to itself is zero].
    """
    variation = geometric_variation(centres, radius_factor)
    return variation[..., 0] + _CURVATURE_WEIGHT * variation[..., 1]


def visible_patches(
    variation: Float[Tensor, "B G"], ratio: float, hide_rough: Bool[Tensor, " B"]
) -> Int[Tensor, "B V"]:
    """The `V = G - floor(ratio G)` patches that are left as keys of attention.

    Hidden are those whose surface varies most where `hide_rough`, else those where it varies least; training draws
    one or the other per cloud (public code: with equal chances).
    """
    order = variation.argsort(dim=1, stable=True)  # from the smoothest to the roughest
    hidden = int(ratio * variation.shape[1])
    return torch.where(hide_rough[:, None], order[:, : order.shape[1] - hidden], order[:, hidden:])
