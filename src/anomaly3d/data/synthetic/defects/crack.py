"""Crack: a jagged V groove with branches."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from anomaly3d.data.synthetic.defects.common import Defect, choose_site, unit, warp
from anomaly3d.data.synthetic.surface import DefectError, Surface

_STEP = 0.012


def crack(surface: Surface, rng: np.random.Generator, size: float) -> Defect:
    """Cut a groove 1-1.8 % of the diagonal deep and twice 0.9-1.4 % wide [ours], as long as its share needs.

    It starts at a random place, runs both ways in short straight pieces with sharp turns, forks, goes over
    edges, and stops where the wall is too thin for its depth.
    """
    diagonal = surface.diagonal
    depth, width = rng.uniform(0.010, 0.018) * diagonal, rng.uniform(0.009, 0.014) * diagonal
    width = max(width, 0.8 * surface.spacing)
    area = len(surface.points) * surface.point_area
    wanted = rng.uniform(0.014, 0.028) * size * area / (2 * width)
    site = choose_site(surface, 0.06 * diagonal, rng)
    walker = _Walker(surface, depth, rng)
    trunk_length = 0.55 * wanted
    forward = walker.walk(site.seed, site.frame[0], trunk_length / 2)
    backward = walker.walk(site.seed, -site.frame[0], trunk_length - forward.length)
    runs = [forward, backward]
    total = forward.length + backward.length
    for _ in range(12):
        if total >= wanted:
            break
        parent = runs[rng.integers(len(runs))]
        if len(parent.nodes) < 3:
            continue
        at = int(rng.integers(1, len(parent.nodes) - 1))
        run = unit(parent.nodes[at + 1] - parent.nodes[at])
        fork = _turned(run, parent.normals[at], rng.choice([-1, 1]) * rng.uniform(0.6, 1.2))
        branch = walker.walk(parent.index[at], fork, min(wanted - total, 0.35 * wanted))
        runs.append(branch)
        total += branch.length
    if total < 0.7 * wanted:
        raise DefectError("no room for a crack of this length")

    place, normal, taper = (np.concatenate(parts) for parts in zip(*(run.dense() for run in runs), strict=True))
    distance, nearest = KDTree(place).query(surface.points, distance_upper_bound=1.5 * width)
    index = np.flatnonzero(np.isfinite(distance))
    nearest = np.asarray(nearest)[index]
    offset, direction = surface.points[index] - place[nearest], normal[nearest]
    offset -= np.einsum("ij,ij->i", offset, direction)[:, None] * direction
    lateral = np.linalg.norm(offset, axis=1)
    inside = (lateral < width) & (np.einsum("ij,ij->i", surface.normals[index], direction) > 0.2)
    index, lateral, offset, direction = index[inside], lateral[inside], offset[inside], direction[inside]
    local_depth = depth * taper[nearest[inside]]
    amount = local_depth * (1 - lateral / width)
    gradient = (local_depth / width)[:, None] * unit(offset)
    points, normals, stretch = warp(surface, index, -amount, direction, gradient)
    mask = np.zeros(len(points), dtype=bool)
    mask[index] = True
    parameters = {"depth": depth / diagonal, "half_width": width / diagonal, "length": total / diagonal}
    parameters["branches"] = float(len(runs) - 2)
    return Defect(Surface(points, normals, diagonal), mask, stretch, parameters)


class _Run:
    """One unbranched stretch: surface points in order, with normals."""

    def __init__(self, surface: Surface, index: list[int], normals: list[np.ndarray]) -> None:
        self.index = index
        self.nodes = surface.points[index]
        self.normals = np.stack(normals)

    @property
    def length(self) -> float:
        return float(np.linalg.norm(np.diff(self.nodes, axis=0), axis=1).sum())

    def dense(self, parts: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places (K, 3), normals (K, 3) and depth factors (K,), several to each piece; shallow at the end."""
        at = np.linspace(0, len(self.nodes) - 1, (len(self.nodes) - 1) * parts + 1)
        left = np.minimum(at.astype(int), max(len(self.nodes) - 2, 0))
        right = np.minimum(left + 1, len(self.nodes) - 1)
        t = (at - left)[:, None]
        places = (1 - t) * self.nodes[left] + t * self.nodes[right]
        normals = unit((1 - t) * self.normals[left] + t * self.normals[right])
        return places, normals, np.clip((len(self.nodes) - 0.5 - at) / 2.5, 0.35, 1.0)


class _Walker:
    """Walks along the surface in steps of 1.2 % of the diagonal with random sharp turns."""

    def __init__(self, surface: Surface, depth: float, rng: np.random.Generator) -> None:
        self._surface, self._depth, self._rng = surface, depth, rng
        self._step = max(_STEP * surface.diagonal, 1.2 * surface.spacing)

    def walk(self, seed: int, direction: np.ndarray, length: float) -> _Run:
        surface, rng = self._surface, self._rng
        index, normals = [seed], [self._normal(seed)]
        walked, straight = 0.0, 0
        heading = unit(direction)
        while walked < length:
            here, normal = surface.points[index[-1]], normals[-1]
            if straight == 0:
                heading_now = _turned(heading, normal, rng.uniform(-0.75, 0.75))
                straight = int(rng.integers(1, 4))
            heading_now = unit(heading_now - (heading_now @ normal) * normal)
            heading = unit(heading - (heading @ normal) * normal)
            target = here + self._step * heading_now
            near = np.asarray(surface.tree.query(target, k=8)[1])
            ahead = (surface.points[near] - here) @ heading_now > 0.4 * self._step
            same_side = surface.normals[near] @ normal > -0.2
            if not (ahead & same_side).any():
                break
            step_to = int(near[np.flatnonzero(ahead & same_side)[0]])
            next_normal = self._normal(step_to)
            if self._too_thin(step_to, next_normal):
                break
            walked += float(np.linalg.norm(surface.points[step_to] - here))
            index.append(step_to)
            normals.append(next_normal)
            straight -= 1
        return _Run(surface, index, normals)

    def _normal(self, at: int) -> np.ndarray:
        near = np.asarray(self._surface.tree.query(self._surface.points[at], k=12)[1])
        normals = self._surface.normals[near]
        return unit(normals[normals @ self._surface.normals[at] > 0.2].mean(axis=0))

    def _too_thin(self, at: int, normal: np.ndarray) -> bool:
        """Whether the opposite wall is within the ball that the groove's bottom would touch."""
        centre = self._surface.points[at] - self._depth * normal
        near = self._surface.tree.query_ball_point(centre, 0.7 * self._depth)
        return bool((self._surface.normals[near] @ normal < -0.3).any())


def _turned(direction: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """A direction turned about a unit axis it is about perpendicular to."""
    return np.cos(angle) * direction + np.sin(angle) * np.cross(axis, direction)
