"""Where to look at a cloud from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Camera:
    """Orthographic: rows of `axes` point right, up and to the viewer, in the cloud's frame."""

    axes: NDArray[np.float64]

    def project(self, xyz: Points) -> tuple[Points, NDArray[np.float64]]:
        """Picture coordinates (N, 2) and depth (N,), larger is nearer, in the cloud's unit and about its mean."""
        seen = (xyz - xyz.mean(0)) @ self.axes.T
        return seen[:, :2], seen[:, 2]


def looking_from(direction: Points, up: Points) -> Camera:
    """Camera on the side `direction` points to, with `up` upright in the picture as far as it goes."""
    towards = direction / np.linalg.norm(direction)
    if abs(towards @ up) > 0.98 * np.linalg.norm(up):  # looking along it: any other axis will do
        up = np.roll(up, 1)
    right = np.cross(up, towards)
    right /= np.linalg.norm(right)
    return Camera(np.stack([right, np.cross(towards, right), towards]))


def choose_camera(xyz: Points, normals: Points, spacing: float, up: Points, defect: Mask | None = None) -> Camera:
    """The direction that shows most: of the defect where there is one, else of the whole surface.

    Tries directions spread evenly over the sphere. What a direction shows of a point is the cosine at which it meets
    the surface there, or nothing where other points lie in front. The defect's share and the surface's share are
    added, and oblique views from a little above are preferred where there is little between them.

    Args:
        xyz: (N, 3) points.
        normals: (N, 3) unit normals, of either sign.
        spacing: typical distance between neighbours; points in one cell of twice that size hide one another.
        up: (3,) direction that is upright in the picture.
        defect: (N,) points to show.
    """
    up = up / np.linalg.norm(up)
    best, best_value = looking_from(np.array([1.0, 0.5, 1.0]), up), -np.inf
    for direction in _sphere(120):
        camera = looking_from(direction, up)
        shown = in_front(camera, xyz, 2 * spacing) * np.abs(normals @ direction)
        elevation = np.arcsin(np.clip(direction @ up, -1, 1))
        value = shown.mean() - 0.15 * abs(elevation - 0.4)
        if defect is not None and defect.any():
            value += 1.5 * shown[defect].mean()
        if value > best_value:
            best, best_value = camera, value
    return best


def in_front(camera: Camera, xyz: Points, cell: float) -> Mask:
    """Which points (N,) have none in front of them by more than a cell, on a grid of square cells."""
    flat, depth = camera.project(xyz)
    column, row = ((flat - flat.min(0)) / cell).astype(int).T
    index = column * (row.max() + 1) + row
    front = np.full(index.max() + 1, -np.inf)
    np.maximum.at(front, index, depth)
    return depth > front[index] - cell


def _sphere(count: int) -> Points:
    """(count, 3) unit vectors on a golden spiral."""
    step = np.arange(count) + 0.5
    height, turn = 1 - 2 * step / count, np.pi * (1 + 5**0.5) * step
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), height, radius * np.sin(turn)], axis=1)
