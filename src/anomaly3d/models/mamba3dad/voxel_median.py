"""Median filter of point scores over a small ball."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from anomaly3d.ops.tree import search

# Points per query: with some hundred neighbours each, the padded arrays stay around 100 MB.
CHUNK = 16_384


def ball_median(xyz: Float[Tensor, "N 3"], scores: Float[Tensor, " N"], radius: float) -> Float[Tensor, " N"]:
    """Median of the scores of all points within `radius` of each point, the point itself included.

    On voxel-filtered points, one per occupied voxel, and a radius of 3 voxels, this is the median filter over voxels.
    For an even number of neighbours it is the mean of the two middle scores.
    """
    points = xyz.detach().double().cpu().numpy()
    values = np.append(scores.detach().double().cpu().numpy(), np.inf)  # the last one is "no neighbour"
    tree = KDTree(points)
    medians = np.empty(len(points))
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK]
        counts = tree.query_ball_point(part, radius, return_length=True)
        # With the bound, query keeps distances strictly below it, the ball those up to it.
        bound, ranks = np.nextafter(radius, np.inf), range(1, int(counts.max()) + 1)
        _, index = search(tree, part, ranks, bound)
        near = np.sort(values[index], axis=1)
        rows = np.arange(len(part))
        counts = (index < len(points)).sum(axis=1)
        medians[start : start + CHUNK] = (near[rows, (counts - 1) // 2] + near[rows, counts // 2]) / 2
    return torch.from_numpy(medians).to(scores)
