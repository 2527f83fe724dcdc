"""Which points a distant camera sees: a z-buffer of points with normals, and outward normals from it."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree


def visible_points(
    points: np.ndarray, normals: np.ndarray, direction: np.ndarray, spacing: float, facing: bool = True
) -> np.ndarray:
    """Mask (N,) of the points seen along -direction by an orthographic camera far out in `direction` (3,).

    A point is seen when it faces the camera and no other point of the cloud covers it. Every point covers a
    square of about three spacings, which closes the gaps between samples of a surface at any slant; `spacing`
    is the square root of the area per point. With `facing` false the normals' signs are not trusted:
    both sides count as facing, and fewer points are seen.
    """
    direction = direction / np.linalg.norm(direction)
    side = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
    side /= np.linalg.norm(side)
    up = np.cross(direction, side)
    pixel = 1.2 * spacing
    u, v, depth = points @ side, points @ up, points @ direction
    column = ((u - u.min()) / pixel).astype(np.int64) + 1
    row = ((v - v.min()) / pixel).astype(np.int64) + 1
    width = int(column.max()) + 2
    cell = row * width + column
    nearest = np.full((int(row.max()) + 2) * width, -np.inf)
    np.maximum.at(nearest, cell, depth)
    cover = nearest.reshape(-1, width).copy()
    for axis in (0, 1):
        cover = np.maximum(cover, np.maximum(np.roll(cover, 1, axis), np.roll(cover, -1, axis)))
    cosine = normals @ direction
    slant = np.abs(cosine)
    # Over the three pixels a surface's own samples come closer to the camera by its slope.
    slope = np.sqrt(1 - np.minimum(slant, 1.0) ** 2) / np.maximum(slant, 0.15)
    gap = cover.reshape(-1)[cell] - depth
    if facing:
        return (gap <= pixel * (1.0 + 2.0 * slope)) & (cosine > 0.1)
    # Nothing rules out the back of a thin wall here, so the slack is tighter and flat views do not count.
    return (gap <= pixel * (0.5 + slope)) & (slant > 0.4)


def directions(count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (count, 3), uniform on the sphere."""
    vectors = rng.normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def orient_outward(points: np.ndarray, normals: np.ndarray, spacing: float, views: int = 40) -> np.ndarray:
    """Flip normals (N, 3) so that they face the directions their points are seen from.

    Each view that sees a point votes with the cosine; a point no view sees takes the vote of its neighbours.
    Unlike "away from the centroid" this is right inside bores and on rings.
    """
    vote = np.zeros(len(points))
    for direction in directions(views, np.random.default_rng(0)):
        seen = visible_points(points, normals, direction, spacing, facing=False)
        vote += np.where(seen, normals @ direction, 0.0)
    neighbours = KDTree(points).query(points, k=min(9, len(points)))[1]
    agreement = np.einsum("nd,nkd->nk", normals, normals[neighbours])
    smoothed = (vote[neighbours] * agreement).sum(axis=1)
    return np.where((smoothed < 0)[:, None], -normals, normals)
