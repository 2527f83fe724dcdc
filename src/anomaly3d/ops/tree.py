"""The k-d tree of neighbour searches on the CPU."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree


def kd_tree(points: Float[np.ndarray, "N D"]) -> KDTree:
    """A tree that is quickly made: split at the middle of a box and not at the median, with large leaves."""
    return KDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False)
