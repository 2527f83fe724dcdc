"""Distances to two banks in one unit each, so that their maps can be averaged."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.models.components.memory import nearest
from anomaly3d.ops.fps import farthest_point_sampling


def spread_points(xyz: Float[Tensor, "N 3"], size: int) -> Int[Tensor, " M"]:
    """Which points of a category make its bank of coordinates: in three dimensions the greedy coreset is farthest-point
    sampling, which is twenty times as fast.
    """
    return farthest_point_sampling(xyz[None], min(size, len(xyz)))[0]


def distance_range(rows: Float[Tensor, "N D"], kept: Int[Tensor, " M"]) -> Float[Tensor, " 2"]:
    """Smallest and largest distance of a row to the nearest of those that are kept, itself excepted; never equal.

    Published are the smallest and the largest distance over the test set. Those of the training clouds stand for them
    [ours]: the scores of a cloud may not depend on the other test clouds.
    """
    found = nearest(rows, rows[kept], min(2, len(kept)))[0]
    first = found[:, 0].clone()
    first[kept] = found[kept, -1]
    low, high = first.aminmax()
    return torch.stack([low, torch.maximum(high, low + torch.finfo(low.dtype).eps * (1 + low))])


def in_range(distance: Float[Tensor, " N"], ends: Float[Tensor, " 2"]) -> Float[Tensor, " N"]:
    """0 at the smaller end, 1 at the larger, and beyond."""
    low, high = ends
    return (distance - low) / (high - low)
