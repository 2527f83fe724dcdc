"""Hole: bored through a wall, or blind where the material is thick."""

from __future__ import annotations

import numpy as np

from anomaly3d.data.synthetic.defects.common import RIM, Defect, choose_site
from anomaly3d.data.synthetic.surface import DefectError, Surface


def hole(surface: Surface, rng: np.random.Generator, size: float) -> Defect:
    """Remove a nearly round disc of radius 2-6 % of the diagonal [ours] and add the wall that the bore lays bare.

    Walls thinner than 12 % of the diagonal are pierced; thicker ones get a flat-bottomed blind hole.
    """
    diagonal = surface.diagonal
    radius = float(np.clip(rng.uniform(0.025, 0.05) * np.sqrt(size), 0.02, 0.08)) * diagonal
    radius = max(radius, 2.0 * surface.spacing)
    site = choose_site(surface, 1.6 * radius, rng)
    local = site.local(surface)
    angle, lateral, height = np.arctan2(local[:, 1], local[:, 0]), np.hypot(local[:, 0], local[:, 1]), local[:, 2]
    lobes, phases = rng.uniform(0, 0.03, 3), rng.uniform(0, 2 * np.pi, 3)

    def outline(a: np.ndarray) -> np.ndarray:
        waves = lobes[:, None] * np.cos(np.arange(2, 5)[:, None] * a + phases[:, None])
        return radius * (1 + waves.sum(axis=0))

    beyond = lateral - outline(angle)
    cosine = surface.normals @ site.frame[2]
    strip = (beyond > 0) & (beyond < max(0.25 * radius, 2 * surface.spacing))
    front = strip & (cosine > 0.4) & (np.abs(height) < 0.6 * radius)
    if _missing(angle[front]):
        raise DefectError("no closed rim on the front")
    facing = (beyond < 0) & (cosine < -0.3) & (height < -0.3 * surface.spacing)
    through = facing.any() and -np.quantile(height[facing], 0.02) < 0.12 * diagonal
    floor = float(np.quantile(height[facing], 0.9)) if facing.any() else -np.inf
    back = strip & (cosine < -0.3) & (height < 0.5 * floor) & (height > -0.16 * diagonal) if through else None
    if back is not None and _missing(angle[back]):
        back = None
    if back is not None:
        lowest = float(height[back].min()) - 0.3 * radius
    else:
        depth = min(rng.uniform(0.8, 1.6) * radius, -0.7 * floor)
        lowest = -depth
        if depth < 0.5 * radius or height[front].min() < -0.7 * depth:
            raise DefectError("no material for a blind hole")

    bored = (beyond < 0) & (height < 0.8 * radius) & (height > lowest)
    rim_front, rim_back = (
        _ring_height(angle, height, front),
        None if back is None else _ring_height(angle, height, back),
    )
    fresh, fresh_normals = _wall(surface, outline, rim_front, rim_back, lowest, radius, rng)
    if rim_back is None:
        bottom, bottom_normals = _bottom(surface, outline, lowest, radius, rng)
        fresh, fresh_normals = np.concatenate([fresh, bottom]), np.concatenate([fresh_normals, bottom_normals])

    width = rng.uniform(0.007, 0.014) * diagonal
    near_rim = (np.abs(height) < 0.6 * radius) & (cosine > 0.4)
    if rim_back is not None:
        near_rim |= (cosine < -0.3) & (height < 0.5 * floor) & (height > lowest)
    kept = ~bored
    while True:
        rim = near_rim & (beyond < width)
        share = ((rim & kept).sum() + len(fresh)) / (kept.sum() + len(fresh))
        if share > 0.013 * size or width > RIM[1] * diagonal / 1.15:
            break
        width *= 1.15
    world = surface.points[site.seed] + fresh @ site.frame
    points = np.concatenate([surface.points[kept], world])
    normals = np.concatenate([surface.normals[kept], fresh_normals @ site.frame])
    mask = np.concatenate([rim[kept], np.ones(len(fresh), dtype=bool)])
    parameters = {"radius": radius / diagonal, "rim": width / diagonal, "through": float(back is not None)}
    parameters["depth"] = -lowest / diagonal
    return Defect(Surface(points, normals, diagonal), mask, np.ones(len(points)), parameters)


def _missing(angle: np.ndarray, bins: int = 12) -> bool:
    """Whether a ring of points leaves a sector of 30 degrees empty."""
    return len(np.unique((angle + np.pi) // (2 * np.pi / bins + 1e-9))) < bins


def _ring_height(angle: np.ndarray, height: np.ndarray, ring: np.ndarray):
    """Height of a ring of points as a smooth function of the angle: a Fourier series of order 3, least squares."""

    def basis(a: np.ndarray) -> np.ndarray:
        k = np.arange(1, 4)[:, None]
        return np.concatenate([np.ones((1, len(a))), np.cos(k * a), np.sin(k * a)]).T

    coefficient = np.linalg.lstsq(basis(angle[ring]), height[ring], rcond=None)[0]
    return lambda a: basis(a) @ coefficient


def _wall(surface: Surface, outline, top, bottom, lowest: float, radius: float, rng: np.random.Generator):
    """Points and normals, in the site's frame, on the bore's wall between its rims."""
    angle = rng.uniform(-np.pi, np.pi, 4000)
    high, low = top(angle), bottom(angle) if bottom is not None else np.full(len(angle), lowest)
    length = np.maximum(high - low, 0.0)
    count = int(2 * np.pi * radius * length.mean() / surface.point_area)
    if count == 0:
        raise DefectError("the bore has no wall")
    pick = rng.choice(len(angle), size=count, p=length / length.sum())
    angle = angle[pick]
    outward = np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], axis=1)
    points = outline(angle)[:, None] * outward
    points[:, 2] = low[pick] + length[pick] * rng.uniform(size=count)
    return points, -outward


def _bottom(surface: Surface, outline, lowest: float, radius: float, rng: np.random.Generator):
    """Points and normals, in the site's frame, on a blind hole's flat bottom."""
    count = int(np.pi * radius**2 / surface.point_area)
    angle, reach = rng.uniform(-np.pi, np.pi, count), np.sqrt(rng.uniform(size=count))
    lateral = outline(angle) * reach
    points = np.stack([lateral * np.cos(angle), lateral * np.sin(angle), np.full(count, lowest)], axis=1)
    return points, np.broadcast_to([0.0, 0.0, 1.0], points.shape)
