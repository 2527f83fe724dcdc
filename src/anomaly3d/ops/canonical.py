"""An order of the points that does not depend on the file's."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.ops.precision import as_coordinates


@torch.no_grad()
def canonical_order(xyz: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """Indices that sort the points by x, then y, then z (points that coincide keep their order).

    What is computed from `xyz[canonical_order(xyz)]` is the same, bit for bit, for every order of the same points.

    Raises:
        ValueError: an empty cloud or NaN.
    """
    xyz = as_coordinates(xyz)
    if xyz.device.type == "cpu":
        return torch.from_numpy(_order_ties(xyz.numpy()))
    return canonical_order_torch(xyz)


def order_seen(xyz: Float[Tensor, "N 3"], canonical: bool) -> Int[Tensor, " N"]:
    """The order in which a detector sees the points: canonical, or the file's."""
    return canonical_order(xyz) if canonical else torch.arange(len(xyz), device=xyz.device)


def canonical_order_torch(xyz: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
    """The specification of `canonical_order`, and what runs on GPUs: a stable sort per axis, the last one first."""
    order = xyz[:, 2].argsort(stable=True)
    for axis in (1, 0):
        order = order[xyz[order, axis].argsort(stable=True)]
    return order


def _order_ties(xyz: np.ndarray) -> np.ndarray:
    """One fast sort by x, then a full one of only those points that share their x with another."""
    x = xyz[:, 0].copy()
    order = np.argsort(x)
    x = x[order]
    tied = np.zeros(len(x) + 1, bool)
    np.equal(x[1:], x[:-1], out=tied[1:-1])
    tied = tied[1:] | tied[:-1]
    rest = np.sort(order[tied])  # lexsort is stable: points that coincide stay in their order
    order[tied] = rest[np.lexsort(xyz[rest].T[::-1])]
    return order
