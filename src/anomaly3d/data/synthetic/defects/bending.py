"""Bending: a protruding part is bent progressively out of its place."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from anomaly3d.data.synthetic.defects.common import THRESHOLD, Defect
from anomaly3d.data.synthetic.defects.protrusion import choose_protrusion
from anomaly3d.data.synthetic.surface import Surface


def bending(surface: Surface, rng: np.random.Generator, size: float) -> Defect:
    """Bend a part with 3-9 % of the surface into a circular arc, its tip moved by 2.5-6 % of the diagonal [ours].

    As a beam in pure bending: the line through the middle of the root keeps its length, cross-sections turn
    with it. The part bends across its thinnest direction, where it offers least resistance.
    """
    diagonal = surface.diagonal
    part = choose_protrusion(surface, min(rng.uniform(0.03, 0.09) * size, 0.3), rng)
    index, axis = part.index, part.axis
    along = part.height[index] - part.base
    root = surface.points[index[along <= max(3 * surface.spacing, np.quantile(along, 0.1))]].mean(axis=0)
    sideways = _weak_direction(surface.points[index], axis)
    offset = (surface.points[index] - root) @ sideways
    length = part.length
    angle = float(np.clip(2 * rng.uniform(0.025, 0.06) * diagonal / length, np.deg2rad(6), np.deg2rad(35)))

    rest = np.ones(len(surface.points), dtype=bool)
    rest[index] = False
    bent = [_bend(along, offset, length, sign * angle) for sign in (1.0, -1.0)]
    moved = [surface.points[index] + (u - along)[:, None] * axis + (v - offset)[:, None] * sideways for u, v in bent]
    # To the side where it does not run into the rest.
    tips = [m[along > 0.5 * length] for m in moved]
    struck = [_touching(surface.points[rest], tip, 2 * surface.spacing) for tip in tips]
    side = int(rng.integers(2)) if struck[0] == struck[1] else int(np.argmin(struck))

    points, normals = surface.points.copy(), surface.normals.copy()
    points[index] = moved[side]
    turn = (1.0, -1.0)[side] * angle * along / length
    n_along, n_side = normals[index] @ axis, normals[index] @ sideways
    normals[index] += (n_along * (np.cos(turn) - 1) - n_side * np.sin(turn))[:, None] * axis
    normals[index] += (n_along * np.sin(turn) + n_side * (np.cos(turn) - 1))[:, None] * sideways
    mask = np.linalg.norm(points - surface.points, axis=1) > THRESHOLD * diagonal
    parameters = {"angle_degrees": float(np.rad2deg(angle)), "length": length / diagonal}
    return Defect(Surface(points, normals, diagonal), mask, np.ones(len(points)), parameters)


def _bend(along: np.ndarray, offset: np.ndarray, length: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and beside the straight part after it is bent by `angle` over `length`."""
    turn, radius = angle * along / length, length / angle
    return (radius - offset) * np.sin(turn), radius - (radius - offset) * np.cos(turn)


def _weak_direction(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Unit vector across `axis` in which the points spread least."""
    centred = points - points.mean(axis=0)
    across = centred - (centred @ axis)[:, None] * axis
    candidates = np.linalg.svd(across, full_matrices=False)[2][:2]
    weak = candidates[1] - (candidates[1] @ axis) * axis
    return weak / np.linalg.norm(weak)


def _touching(fixed: np.ndarray, moved: np.ndarray, radius: float) -> int:
    distance = KDTree(fixed, balanced_tree=False, compact_nodes=False).query(moved, distance_upper_bound=radius)[0]
    return int(np.isfinite(distance).sum())
