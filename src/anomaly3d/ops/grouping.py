"""Features by index, and values carried from points to other points."""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from anomaly3d.ops.knn import knn


def gather_points(features: Shaped[Tensor, "B N C"], index: Int[Tensor, "B *shape"]) -> Shaped[Tensor, "B *shape C"]:
    """`features[b, index[b, ...]]` for every cloud b; differentiable in the features."""
    flat = index.reshape(len(index), prod(index.shape[1:]), 1)
    gathered = features.gather(1, flat.expand(-1, -1, features.shape[-1]))
    return gathered.reshape(*index.shape, features.shape[-1])


def interpolate(
    values: Float[Tensor, " M"],
    source_xyz: Float[Tensor, "M 3"],
    target_xyz: Float[Tensor, "N 3"],
    method: Literal["nearest", "inverse_distance"] = "inverse_distance",
    k: int = 3,
    power: int = 1,
) -> Float[Tensor, " N"]:
    """Values of the sources at the targets; differentiable in the values.

    `nearest` takes the nearest source's value. `inverse_distance` averages the k nearest (all, where there are fewer)
    with weights 1 / distance^power; a target on a source has exactly that source's value (the mean of the sources
    there). The weights are ratios of distances, so the unit does not matter. Built for 1024 sources and a million
    targets.

    Raises:
        ValueError: an unknown method, no sources or targets, NaN coordinates, or values that do not match the sources.
    """
    if method not in ("nearest", "inverse_distance"):
        raise ValueError(f"interpolate has no method {method!r}: use nearest or inverse_distance")
    if values.shape != source_xyz.shape[:1]:
        raise ValueError(f"{tuple(values.shape)} values for {len(source_xyz)} sources")
    k = 1 if method == "nearest" else min(k, len(source_xyz))
    (distance,), (index,) = knn(target_xyz[None], source_xyz[None], k)
    if method == "nearest":
        return values[index[:, 0]]
    weight = torch.where(distance > 0, distance[:, :1] / distance, 1.0) ** power  # relative to the nearest, in [0, 1]
    return (values[index] * weight).sum(1) / weight.sum(1)
