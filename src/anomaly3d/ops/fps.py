"""Farthest-point sampling: the plain-torch specification, and exact bucketed sampling for the CPU.

Every backend chooses the first point, then k - 1 times the point whose distance to the points chosen so far is
largest; among equals the one with the lowest index. A chosen point is never chosen again, so the k indices differ
even where points coincide.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.ops.backend import check_backend, find_package, log_choice, require_package
from anomaly3d.ops.precision import as_coordinates

BACKENDS = ("torch", "bucketed", "pointnet2")

_CHOSEN = -1.0  # below every distance: min() keeps it, argmax never takes it


@torch.no_grad()
def farthest_point_sampling(
    xyz: Float[Tensor, "B N 3"], k: int, start: Int[Tensor, " B"] | None = None, backend: str = "auto"
) -> Int[Tensor, "B k"]:
    """Indices of k points spread over each cloud, in the order in which they were chosen.

    Args:
        xyz: clouds of N points each, any unit.
        k: number of points, 1 <= k <= N.
        start: index of the first point. None takes the point farthest from the cloud's mean (see `outermost`),
            which does not depend on the order of the points.
        backend: `torch` (the specification), `bucketed` (CPU, identical indices), `pointnet2` (kernel of
            pointnet2_ops, CUDA and float32 only; the same up to float rounding) or `auto`: pointnet2 on CUDA where it
            imports, bucketed on the CPU, torch otherwise.

    Raises:
        ValueError: k out of range, an empty cloud, a start outside the cloud, NaN.
        InputError: a backend that is unknown or missing.
    """
    check_backend("farthest_point_sampling", backend, BACKENDS)
    xyz = as_coordinates(xyz)
    if not 1 <= k <= xyz.shape[1]:
        raise ValueError(f"farthest_point_sampling of k = {k} from clouds of {xyz.shape[1]} points")
    if start is None:
        start = outermost(xyz)
    elif start.shape != xyz.shape[:1] or bool(((start < 0) | (start >= xyz.shape[1])).any()):
        raise ValueError(f"start must hold one index below {xyz.shape[1]} per cloud, not {start.tolist()}")
    if backend == "auto":
        backend = _choose(xyz)
        log_choice("farthest_point_sampling", backend, xyz.device.type)
    if backend == "bucketed":
        clouds = zip(xyz.cpu().numpy(), start.tolist(), strict=True)
        chosen = np.stack([_fps_bucketed(cloud, k, first) for cloud, first in clouds])
        return torch.from_numpy(chosen).to(xyz.device)
    return _fps_pointnet2(xyz, k, start) if backend == "pointnet2" else _fps_torch(xyz, k, start)


def outermost(xyz: Float[Tensor, "B N 3"]) -> Int[Tensor, " B"]:
    """The point farthest from each cloud's mean, the lowest index among equals.

    In float64, so that the order in which the points are summed cannot tip the choice between two distinct points.
    """
    xyz = xyz.double()
    return (xyz - xyz.mean(1, keepdim=True)).square().sum(-1).argmax(-1)


def _choose(xyz: Tensor) -> str:
    if xyz.is_cuda:
        return "pointnet2" if find_package("pointnet2_ops") is not None else "torch"
    return "bucketed" if xyz.device.type == "cpu" else "torch"


def _fps_torch(xyz: Float[Tensor, "B N 3"], k: int, start: Int[Tensor, " B"]) -> Int[Tensor, "B k"]:
    chosen = start.new_empty(len(xyz), k, dtype=torch.int64)
    distance = xyz.new_full(xyz.shape[:2], torch.inf)
    latest = start.to(torch.int64)[:, None]
    for i in range(k):
        chosen[:, i] = latest[:, 0]
        x, y, z = (xyz - xyz.gather(1, latest[..., None].expand(-1, -1, 3))).square().unbind(-1)
        # Added in this order and not by sum(), so that the bucketed backend can give the same bits.
        torch.minimum(distance, x + y + z, out=distance)
        distance.scatter_(1, latest, _CHOSEN)
        latest = distance.argmax(1, keepdim=True)  # the first of equal maxima, by torch's documentation
    return chosen


def _fps_bucketed(xyz: np.ndarray, k: int, start: int) -> np.ndarray:
    """The torch loop without the distances that cannot change: buckets of nearby points are skipped whole.

    A bucket is skipped when even its bounding box is no nearer to the new point than its worst point is to an old
    one. Rounding is monotone, so a bound computed with the operations of the distance never exceeds the distance.
    """
    axes = xyz.T.copy()  # contiguous: numpy reduces and gathers columns of (N, 3) many times slower
    order = _buckets(axes, size=int(np.clip(len(xyz) // 1024, 64, 512)))
    points = np.stack([axis[order] for axis in axes], 1)  # (buckets, 3, size)
    low, high = points.min(2).T.copy(), points.max(2).T.copy()  # (3, buckets)
    distance = np.full(order.shape, np.inf, xyz.dtype)
    distance.reshape(-1)[len(xyz) :] = _CHOSEN  # the padding
    worst = distance.max(1)
    chosen = np.empty(k, np.int64)
    bucket, slot = np.argwhere(order == start)[0]
    for i in range(k):
        chosen[i] = order[bucket, slot]
        distance[bucket, slot] = _CHOSEN
        point = points[bucket, :, slot, None]
        gap = np.maximum(np.maximum(low - point, point - high), 0)
        gap *= gap
        near = gap[0] + gap[1] + gap[2] < worst
        near[bucket] = True
        (near,) = near.nonzero()
        x_y_z = points[near]
        x_y_z -= point
        x_y_z *= x_y_z
        updated = np.minimum(distance[near], x_y_z[:, 0] + x_y_z[:, 1] + x_y_z[:, 2])
        distance[near] = updated
        worst[near] = updated.max(1)
        (farthest,) = (worst == worst.max()).nonzero()
        row, slots = (distance[farthest] == worst[farthest[0]]).nonzero()
        lowest = order[farthest[row], slots].argmin()
        bucket, slot = farthest[row[lowest]], slots[lowest]
    return chosen


def _buckets(axes: np.ndarray, size: int) -> np.ndarray:
    """Indices (buckets, size) of points (3, N) near each other: equal runs of a Z-order curve of 32 cells a side.

    The last row is filled up by repeating its last point.
    """
    low = axes.min(1)
    side = max(float((axes.max(1) - low).max()), 1e-30)
    spread = np.array([sum((cell >> bit & 1) << 3 * bit for bit in range(5)) for cell in range(32)], np.uint16)
    x, y, z = (
        spread[((axis - start) * (31.999 / side)).astype(np.intp)] for axis, start in zip(axes, low, strict=True)
    )
    # A stable sort of 16-bit keys is a radix sort: linear in the number of points.
    order = np.argsort(x << 2 | y << 1 | z, kind="stable")
    return np.pad(order, (0, -len(order) % size), mode="edge").reshape(-1, size)


def _fps_pointnet2(xyz: Float[Tensor, "B N 3"], k: int, start: Int[Tensor, " B"]) -> Int[Tensor, "B k"]:
    package = require_package("pointnet2_ops", "farthest_point_sampling with backend='pointnet2'")
    kernel = import_module(f"{package.__name__}.pointnet2_utils").furthest_point_sample
    first = start.to(torch.int64)[:, None]
    # The kernel starts at index 0 and passes over points within 0.03 of the origin: the start changes places with
    # point 0, and the cloud goes into the unit cube beside the origin.
    swap = torch.arange(xyz.shape[1], device=xyz.device).repeat(len(xyz), 1)
    swap.scatter_(1, first, 0)[:, :1] = first
    low = xyz.amin(1, keepdim=True)
    side = (xyz.amax(1, keepdim=True) - low).amax(-1, keepdim=True).clamp_min(torch.finfo(xyz.dtype).tiny)
    cloud = ((xyz - low) / side + 0.1).float().gather(1, swap[..., None].expand(-1, -1, 3))
    return swap.gather(1, kernel(cloud.contiguous(), k).to(torch.int64))
