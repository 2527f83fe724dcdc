"""k nearest neighbours, exact: chunked torch on any device, a k-d tree on the CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.ops.backend import check_backend, log_choice
from anomaly3d.ops.precision import as_coordinates, no_autocast
from anomaly3d.ops.tree import kd_tree, search

BACKENDS = ("torch", "kdtree")

_CHUNK_DISTANCES = 1 << 26  # distances held at a time by the torch backend: 256 MiB in float32


@torch.no_grad()
def knn(
    query: Float[Tensor, "B M 3"], points: Float[Tensor, "B N 3"], k: int, backend: str = "auto"
) -> tuple[Float[Tensor, "B M k"], Int[Tensor, "B M k"]]:
    """Euclidean distances, ascending, and indices into `points` of each query's k nearest points.

    Deterministic; the order among equal distances is the backend's. No gradient.

    Args:
        query: where to look from.
        points: clouds of N points each, in the unit of `query`.
        k: number of neighbours, 1 <= k <= N; a query that is one of the points finds itself.
        backend: `torch` (the specification: direct differences, never |a|^2 + |b|^2 - 2ab, chunked in M),
            `kdtree` (scipy, on the CPU) or `auto`: kdtree on the CPU, torch elsewhere.

    Raises:
        ValueError: k out of range, no points, NaN.
        InputError: an unknown backend.
    """
    check_backend("knn", backend, BACKENDS)
    query, points = as_coordinates(query, "query"), as_coordinates(points, "points")
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"knn with k = {k} among {points.shape[1]} points")
    if len(query) != len(points):
        raise ValueError(f"knn of {len(query)} batches of queries in {len(points)} clouds")
    if backend == "auto":
        backend = "kdtree" if points.device.type == "cpu" else "torch"
        log_choice("knn", backend, points.device.type)
    with no_autocast(points):
        return _knn_kdtree(query, points, k) if backend == "kdtree" else _knn_torch(query, points, k)


def _knn_torch(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rows = max(1, _CHUNK_DISTANCES // (len(points) * points.shape[1]))
    found = [
        torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False, sorted=True)
        for part in query.split(rows, dim=1)
    ]
    return torch.cat([f.values for f in found], 1), torch.cat([f.indices for f in found], 1)


def _knn_kdtree(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance = query.new_empty(*query.shape[:2], k)
    index = torch.empty_like(distance, dtype=torch.int64)
    for b, cloud in enumerate(points.cpu().numpy()):
        # Sliding-midpoint splits: the tree is built several times faster and answers as fast.
        tree = kd_tree(cloud)
        found = search(tree, query[b].cpu().numpy(), k)
        distance[b], index[b] = (torch.from_numpy(part.reshape(-1, k)) for part in found)
    return distance, index
