"""What the six kinds share: the result, the label rule's numbers, the choice of a place, and a warp of the surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly3d.data.synthetic.surface import Surface, frame

THRESHOLD = 0.003
"""A point moved by more than this fraction of the diagonal is labelled; no unlabelled point is moved by more."""

RIM = (0.006, 0.03)
"""Least and greatest width, in diagonals, of the labelled rim around a new surface."""


@dataclass(frozen=True)
class Defect:
    """A surface with one defect.

    `mask` (N,) marks the anomalous points, `weight` (N,) is the area of each point relative to an untouched
    one (for even density after thinning), `parameters` says what was done, lengths in diagonals.
    """

    surface: Surface
    mask: np.ndarray
    weight: np.ndarray
    parameters: dict[str, float]

    @property
    def share(self) -> float:
        """Labelled share of the area."""
        return float(self.weight[self.mask].sum() / self.weight.sum())


@dataclass(frozen=True)
class Site:
    """A place on the surface: a point, its local frame (rows: two tangents, normal), and what is around it.

    `coverage` is the share of the flat disc of the site's radius that the surface fills; `thickness` the depth
    of the opposite wall under it (inf where none is within the radius); `blocked` says that other surface stands close
    above.
    """

    seed: int
    frame: np.ndarray
    coverage: float
    thickness: float
    blocked: bool

    def local(self, surface: Surface, index: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Points in the site's frame: two tangential coordinates and the height."""
        return (surface.points[index] - surface.points[self.seed]) @ self.frame.T


def choose_site(surface: Surface, radius: float, rng: np.random.Generator, candidates: int = 10) -> Site:
    """A random place whose disc of `radius` is well filled and free above; the best of the candidates if none is."""
    best: tuple[float, Site] | None = None
    for seed in rng.integers(len(surface.points), size=candidates):
        site = _look_at(surface, int(seed), radius, rng)
        if site.coverage > 0.8 and not site.blocked:
            return site
        merit = min(site.coverage, 1.0) - 0.5 * site.blocked
        if best is None or merit > best[0]:
            best = (merit, site)
    assert best is not None
    return best[1]


def _look_at(surface: Surface, seed: int, radius: float, rng: np.random.Generator) -> Site:
    centre = surface.points[seed]
    index = np.asarray(surface.tree.query_ball_point(centre, radius))
    offset = surface.points[index] - centre
    cosine = surface.normals[index] @ surface.normals[seed]
    near = (np.einsum("ij,ij->i", offset, offset) < (0.5 * radius) ** 2) & (cosine > 0.5)
    normal = surface.normals[index[near]].mean(axis=0)
    normal /= np.linalg.norm(normal)
    axes = frame(normal, rng)
    local = offset @ axes.T
    lateral, height = np.hypot(local[:, 0], local[:, 1]), local[:, 2]
    cosine = surface.normals[index] @ normal
    front = (cosine > 0.4) & (np.abs(height) < 0.4 * radius)
    back = height[(cosine < -0.3) & (height < 0) & (lateral < 0.6 * radius)]
    above = (height > 0.35 * radius) & (lateral < 0.7 * radius)
    return Site(
        seed=seed,
        frame=axes,
        coverage=float(front.sum() * surface.point_area / (np.pi * radius**2)),
        thickness=float(-np.quantile(back, 0.9)) if len(back) > 3 else np.inf,
        blocked=bool(above.sum() > 0.05 * len(index)),
    )


def warp(
    surface: Surface, index: np.ndarray, amount: np.ndarray, direction: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move points `index` (K,) by amount (K,) along direction (K, 3), given the amount's gradient (K, 3).

    Returns all points, all normals, and the stretch of area at every point. With F = I + direction gradient^T,
    normals and areas follow the cofactor matrix of F (the slow turn of the direction itself is neglected).
    """
    points, normals = surface.points.copy(), surface.normals.copy()
    points[index] += amount[:, None] * direction
    normal = surface.normals[index]
    along = np.einsum("ij,ij->i", direction, gradient)
    across = np.einsum("ij,ij->i", direction, normal)
    carried = (1 + along)[:, None] * normal - gradient * across[:, None]
    area = np.linalg.norm(carried, axis=1)
    normals[index] = np.where(area[:, None] > 1e-6, carried / np.maximum(area, 1e-6)[:, None], normal)
    stretch = np.ones(len(points))
    stretch[index] = np.clip(area, 0.1, 5.0)
    return points, normals, stretch


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
