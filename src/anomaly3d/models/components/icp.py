"""Point-to-plane ICP (Chen and Medioni, 1992) from many poses at once: the search where no correspondence is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from anomaly3d.models.components.ransac import Poses, moved
from anomaly3d.ops.tree import search


class Surface(NamedTuple):
    """Points that a cloud is brought onto."""

    tree: KDTree
    points: Float64[np.ndarray, "m 3"]
    normals: Float64[np.ndarray, "m 3"]  # unit length, either sign

    @classmethod
    def of(cls, points: Float64[np.ndarray, "m 3"], normals: Float64[np.ndarray, "m 3"]) -> Surface:
        """Of points and their normals."""
        return cls(KDTree(points), points, normals)


def icp(source: Float64[np.ndarray, "n 3"], surface: Surface, poses: Poses, reach: float, iterations: int) -> Poses:
    """Each pose after some steps: points within `reach` of the surface go to the plane of the nearest point.

    A step minimises `sum_i ((R p_i + t - q_i) . n_i)^2` for a small rotation, linearised at the present pose. Where the
    points within reach leave a direction open (a plane slides on a plane), the pose does not move along it.

    Args:
        source: points, in the unit of the surface's.
        surface: where they should go.
        poses: the starts.
        reach: largest distance of a pair.
        iterations: steps of every pose.
    """
    poses = poses.copy()
    for _ in range(iterations):
        points = moved(source, poses)
        distance, nearest = search(surface.tree, points, reach=reach)
        pair = np.isfinite(distance)
        nearest[~pair] = 0
        normals = surface.normals[nearest]
        gap = ((points - surface.points[nearest]) * normals).sum(2)
        centre = points.mean(1, keepdims=True)
        turn = np.cross(points - centre, normals) / reach  # in units of reach, so that turns and shifts weigh alike
        rows = np.concatenate([turn, normals], 2) * pair[:, :, None]
        across = rows.transpose(0, 2, 1)
        damping = 1e-6 * len(source) * np.eye(6)
        step = -np.linalg.solve(across @ rows + damping, across @ (gap * pair)[:, :, None])[:, :, 0]
        rotation = Rotation.from_rotvec(step[:, :3] / reach).as_matrix()
        offset = poses[:, :3, 3, None] - centre.transpose(0, 2, 1)
        poses[:, :3, :3] = rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = (rotation @ offset)[:, :, 0] + centre[:, 0] + step[:, 3:]
    return poses


def residuals(
    source: Float64[np.ndarray, "n 3"], tree: KDTree, poses: Poses, reach: float
) -> Float64[np.ndarray, " H"]:
    """Root mean square distance of the points to the nearest one of the tree, none farther than `reach`."""
    distance = search(tree, moved(source, poses), reach=reach)[0]
    return np.sqrt(np.square(np.minimum(distance, reach)).mean(1))
