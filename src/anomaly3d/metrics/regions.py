"""Anomalous regions of a cloud: connected components of its labelled points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from anomaly3d.ops.tree import kd_tree, search

RADIUS = 6.4
"""Length of the longest edge, in units of the cloud's spacing [ours].

Points drawn evenly from a surface have 28 neighbours on average within 6.4 median distances to the nearest one, and 14
at the rim of a region, where then one in a million is cut off from it. Clouds of more regular spacing have more.
"""


def label_regions(
    xyz: Float[np.ndarray, "N 3"], mask: Bool[np.ndarray, " N"], radius: float = RADIUS
) -> Int64[np.ndarray, " A"]:
    """The region of each labelled point, numbered from 0: components of the graph of labelled points that are close.

    Two labelled points are joined if they are no further apart than `radius` times the spacing, the median distance
    from the places of labelled points to the nearest other place. So regions do not depend on the cloud's unit, on its
    pose, on the order of its points, on single points far off, or on points that are stored twice.

    Args:
        xyz: all points of the cloud, in any unit.
        mask: true for its A labelled points.
        radius: in units of the spacing.
    """
    labelled = xyz[mask]
    if len(labelled) < 2:
        return np.zeros(len(labelled), dtype=np.int64)
    places, place = np.unique(labelled, axis=0, return_inverse=True)  # copies of a point would make a pair each
    nearest = _to_another(xyz, places)
    if not nearest.all():
        nearest = _to_another(np.unique(xyz, axis=0), places)
    longest = radius * np.median(nearest) if np.isfinite(nearest).all() else 0.0
    edges = KDTree(places).query_pairs(longest, output_type="ndarray")
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(len(places),) * 2)
    return connected_components(graph, directed=False)[1].astype(np.int64)[place.reshape(-1)]


def _to_another(xyz: Float[np.ndarray, "N 3"], places: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, " P"]:
    """From places of a cloud to the nearest of its points but one, which lies there; infinite if there is no other."""
    return search(kd_tree(xyz), places, 2)[0][:, 1]
