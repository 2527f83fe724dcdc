"""Bulge and concavity: a smooth bump along the normal."""

from __future__ import annotations

import numpy as np

from anomaly3d.data.synthetic.defects.common import THRESHOLD, Defect, Site, choose_site, unit, warp
from anomaly3d.data.synthetic.surface import Surface, smooth_step


def bump(surface: Surface, rng: np.random.Generator, size: float, sign: float) -> Defect:
    """Raise (sign +1) or sink (sign -1) a round patch by 1.2-3 % of the diagonal [ours].

    In walls thinner than the bump can respect, both sides move together, as a dent in sheet metal does.
    """
    diagonal = surface.diagonal
    labelled = len(surface.points) * surface.point_area * np.exp(rng.uniform(np.log(0.013), np.log(0.032))) * size
    height = diagonal * rng.uniform(0.012, 0.030)
    reach = np.sqrt(labelled / np.pi) / (2 / np.pi * np.arccos(np.sqrt(THRESHOLD * diagonal / height)))
    reach = float(np.clip(reach, 2.5 * surface.spacing, 0.3 * diagonal))
    height = max(min(height, 0.5 * reach), 0.007 * diagonal)
    site = choose_site(surface, 0.8 * reach, rng)
    thin = site.thickness < max(0.03 * diagonal, 1.5 * height)
    field = _through_wall if thin else _on_surface
    index, fraction, direction, gradient = field(surface, site, reach, height)
    points, normals, stretch = warp(surface, index, sign * height * fraction, direction, sign * height * gradient)
    mask = np.zeros(len(points), dtype=bool)
    mask[index] = height * fraction > THRESHOLD * diagonal
    parameters = {"height": sign * height / diagonal, "reach": reach / diagonal, "both_sides": float(thin)}
    return Defect(Surface(points, normals, diagonal), mask, stretch, parameters)


def _profile(distance: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """cos^2 from 1 at distance 0 to 0 at `reach`, and its derivative."""
    phase = np.pi * np.minimum(distance / reach, 1.0)
    return np.cos(phase / 2) ** 2, -np.pi / (2 * reach) * np.sin(phase)


def _on_surface(surface: Surface, site: Site, reach: float, height: float) -> tuple[np.ndarray, ...]:
    """The bump follows the surface: only what is reached along it moves, along its smoothed normals."""
    index, along = surface.geodesic(site.seed, 1.6 * reach)
    offset = surface.points[index] - surface.points[site.seed]
    distance = np.linalg.norm(offset, axis=1)
    # The straight distance is smooth where that along the graph is not; the latter only fades out what the
    # straight distance would reach across a gap.
    fade = smooth_step((1.6 * reach - along) / (0.4 * reach))
    fraction, slope = _profile(distance, reach)
    direction = _smooth_normals(surface, index, 0.35 * reach)
    return index, fraction * fade, direction, (slope * fade)[:, None] * unit(offset)


def _through_wall(surface: Surface, site: Site, reach: float, height: float) -> tuple[np.ndarray, ...]:
    """One field for both sides of a thin wall: it depends on the place beside the axis and fades with depth."""
    index = np.asarray(surface.tree.query_ball_point(surface.points[site.seed], 1.2 * reach))
    local = site.local(surface, index)
    # The point under the seed: the two sides of a plate hang together only around its edge.
    opposite = surface.normals[index] @ site.frame[2] < -0.3
    miss = np.abs(local + np.array([0, 0, site.thickness])).sum(axis=1)
    below = int(index[np.where(opposite, miss, np.inf).argmin()])
    index = np.union1d(surface.connected(index, site.seed), surface.connected(index, below))
    local = site.local(surface, index)
    radial = np.concatenate([local[:, :2], np.zeros((len(index), 1))], axis=1)
    fraction, slope = _profile(np.linalg.norm(radial, axis=1), reach)
    fade = smooth_step((site.thickness * 1.2 + 3 * height - np.abs(local[:, 2])) / (2 * height))
    direction = np.broadcast_to(site.frame[2], (len(index), 3))
    return index, fraction * fade, direction, (slope * fade)[:, None] * (unit(radial) @ site.frame)


def _smooth_normals(surface: Surface, index: np.ndarray, width: float) -> np.ndarray:
    """Normals averaged over a Gaussian of standard deviation `width`, so that edges move as one."""
    points, normals = surface.points[index], surface.normals[index]
    anchors = np.linspace(0, len(index) - 1, min(len(index), 250)).astype(int)
    squared = ((points[:, None] - points[anchors]) ** 2).sum(-1)
    weight = np.exp(-squared / (2 * width**2)) * (normals @ normals[anchors].T > -0.1)
    averaged = weight @ normals[anchors]
    return unit(np.where(np.linalg.norm(averaged, axis=1, keepdims=True) > 1e-6, averaged, normals))
