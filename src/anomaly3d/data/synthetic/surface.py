"""A solid's surface as oriented points, and the neighbourhood questions the defects ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import KDTree

if TYPE_CHECKING:
    import trimesh


class DefectError(RuntimeError):
    """The defect found no place on this cloud; another generator state or another kind may."""


@dataclass(frozen=True)
class Surface:
    """Points (N, 3) spread about evenly over a surface, unit normals (N, 3) that point out of the material.

    `diagonal` is the unit of all lengths in the defects: the bounding-box diagonal of the whole object in its
    own units.
    """

    points: np.ndarray
    normals: np.ndarray
    diagonal: float

    @cached_property
    def tree(self) -> KDTree:
        """The points' search tree."""
        return KDTree(self.points, balanced_tree=False, compact_nodes=False)

    @cached_property
    def point_area(self) -> float:
        """Surface area one point stands for: the median over the disc that holds a point's 8 neighbours."""
        probe = self.points[:: max(1, len(self.points) // 500)]
        reach = self.tree.query(probe, k=min(9, len(self.points)))[0][:, -1]
        return float(np.median(np.pi * reach**2) / 8)

    @property
    def spacing(self) -> float:
        """Square root of a point's area."""
        return float(np.sqrt(self.point_area))

    def graph(self, index: np.ndarray, radius: float, bend: float = -0.2) -> coo_array:
        """Neighbours within `radius` among the points `index`, edges weighted by length.

        Edges between normals whose cosine is below `bend` are left out: they join the two sides of a thin wall.
        """
        points, normals = self.points[index], self.normals[index]
        pairs = KDTree(points).query_pairs(radius, output_type="ndarray")
        pairs = pairs[np.einsum("ij,ij->i", normals[pairs[:, 0]], normals[pairs[:, 1]]) > bend]
        length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        return coo_array((length + 1e-12, (pairs[:, 0], pairs[:, 1])), shape=(len(index), len(index)))

    def connected(self, index: np.ndarray, seed: int) -> np.ndarray:
        """Those of the points `index` that hang together with point `seed`, which is one of them."""
        _, component = connected_components(self.graph(index, 2.5 * self.spacing), directed=False)
        return index[component == component[np.flatnonzero(index == seed)[0]]]

    def geodesic(self, seed: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
        """Indices (K,) of points within `reach` of point `seed` along the surface, and those distances (K,).

        Distances follow edges between neighbours, so they are a few per cent too long and not smooth.
        """
        index = np.asarray(self.tree.query_ball_point(self.points[seed], reach))
        start = int(np.flatnonzero(index == seed)[0])
        distance = dijkstra(self.graph(index, 2.2 * self.spacing), directed=False, indices=start, limit=reach)
        near = np.isfinite(distance)
        return index[near], distance[near]


def sample_surface(mesh: trimesh.Trimesh, count: int, rng: np.random.Generator) -> Surface:
    """`count` points drawn uniformly over a mesh's area, with the normals of their faces."""
    import trimesh.sample

    points, face = trimesh.sample.sample_surface(mesh, count, seed=int(rng.integers(2**31)))[:2]
    return Surface(np.asarray(points), np.asarray(mesh.face_normals[face]), float(np.linalg.norm(mesh.extents)))


def frame(normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows: a random unit tangent, the tangent across it, the normal."""
    tangent = np.cross(normal, rng.normal(size=3))
    tangent /= np.linalg.norm(tangent)
    return np.stack([tangent, np.cross(normal, tangent), normal])


def smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, with continuous slope between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)
