"""The k-d tree of neighbour searches on the CPU, and how many threads search it."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree


def kd_tree(points: Float[np.ndarray, "N D"]) -> KDTree:
    """A tree that is quickly made: split at the middle of a box and not at the median, with large leaves."""
    return KDTree(points, leafsize=32, balanced_tree=False, compact_nodes=False)


def search(
    tree: KDTree, query: Float[np.ndarray, "*shape D"], k: int | range = 1, reach: float = inf
) -> tuple[np.ndarray, Any]:
    """Distances and indices of the k nearest points of the tree below `reach`, as `KDTree.query` gives them.

    By as many threads as torch may use: runs beside each other keep to their shares of the cores, and a data loader's
    workers to one core each. The number changes no bit.
    """
    return tree.query(query, k, distance_upper_bound=reach, workers=torch.get_num_threads())  # pyright: ignore[reportArgumentType]
