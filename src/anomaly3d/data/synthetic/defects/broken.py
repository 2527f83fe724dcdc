"""Broken: a protruding part is missing, a rough fracture face in its place."""

from __future__ import annotations

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from anomaly3d.data.synthetic.defects.common import RIM, Defect
from anomaly3d.data.synthetic.defects.protrusion import choose_protrusion
from anomaly3d.data.synthetic.surface import DefectError, Surface, frame


def broken(surface: Surface, rng: np.random.Generator, size: float) -> Defect:
    """Cut off a part with 2-10 % of the surface [ours] along a rough face, fill in that face and label it."""
    diagonal = surface.diagonal
    part = choose_protrusion(surface, min(rng.uniform(0.02, 0.10) * size, 0.25), rng)
    axes = frame(part.axis, rng)
    lateral = surface.points @ axes[:2].T
    roughness = _Roughness(diagonal, rng)
    above = part.height - part.base - roughness.height(lateral)
    tip = part.index[part.height[part.index].argmax()]
    if above[tip] <= 0:
        raise DefectError("the part is shorter than the fracture is rough")
    lost = surface.connected(np.flatnonzero(above > 0), int(tip))
    kept = np.ones(len(above), dtype=bool)
    kept[lost] = False
    if _pieces(surface, kept) > _pieces(surface, np.ones_like(kept)):
        raise DefectError("the rest would fall apart")

    face, face_normals, stretch = _fracture(surface, part.base, axes, roughness, lateral, above, lost, rng)
    if len(face) < 8:
        raise DefectError("the fracture face is too small")
    distance = KDTree(face).query(surface.points[kept], distance_upper_bound=RIM[1] * diagonal)[0]
    width = rng.uniform(0.007, 0.014) * diagonal
    while stretch.sum() + (distance < width).sum() < 0.013 * size * kept.sum() and width < RIM[1] * diagonal / 1.15:
        width *= 1.15
    points = np.concatenate([surface.points[kept], face])
    normals = np.concatenate([surface.normals[kept], face_normals])
    mask = np.concatenate([distance < width, np.ones(len(face), dtype=bool)])
    weight = np.concatenate([np.ones(kept.sum()), stretch])
    parameters = {
        "lost_share": len(lost) / len(above),
        "face_area": float(stretch.sum()) * surface.point_area / diagonal**2,
        "rim": width / diagonal,
    }
    return Defect(Surface(points, normals, diagonal), mask, weight, parameters)


class _Roughness:
    """Height of the fracture over its plane: waves of 3-14 % of the diagonal, steep enough to look torn."""

    def __init__(self, diagonal: float, rng: np.random.Generator) -> None:
        wavelength = diagonal * np.geomspace(0.14, 0.03, 6)
        angle = rng.uniform(0, 2 * np.pi, 6)
        self._wave = 2 * np.pi / wavelength[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self._phase = rng.uniform(0, 2 * np.pi, 6)
        self._amplitude = wavelength * rng.uniform(0.04, 0.08, 6)

    def height(self, lateral: np.ndarray) -> np.ndarray:
        return np.sin(lateral @ self._wave.T + self._phase) @ self._amplitude

    def slope(self, lateral: np.ndarray) -> np.ndarray:
        return (np.cos(lateral @ self._wave.T + self._phase) * self._amplitude) @ self._wave


def _fracture(
    surface: Surface,
    base: float,
    axes: np.ndarray,
    roughness: _Roughness,
    lateral: np.ndarray,
    above: np.ndarray,
    lost: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, normals and relative areas of the cut through the material under the lost part."""
    spacing = surface.spacing
    edge = np.flatnonzero(np.abs(above) < 2.5 * spacing)
    own = np.zeros(len(above), dtype=bool)
    own[lost] = True
    # The outline of this part's cross-section: points at the cut that are lost, or next to lost ones.
    near_lost = KDTree(surface.points[lost]).query(surface.points[edge], distance_upper_bound=3 * spacing)[0]
    own[edge[np.isfinite(near_lost)]] = True
    outline = edge[own[edge]]
    if len(outline) < 6:
        raise DefectError("no cross-section")
    low, high = lateral[outline].min(axis=0), lateral[outline].max(axis=0)
    count = int(np.prod(high - low) / surface.point_area)
    place = rng.uniform(low, high, size=(min(count, 200_000), 2))
    points = place @ axes[:2] + (base + roughness.height(place))[:, None] * axes[2]
    belongs = own[edge][KDTree(surface.points[edge]).query(points)[1]]
    distance, nearest = surface.tree.query(points, k=4)
    towards = np.einsum("nkd,nkd->nk", points[:, None] - surface.points[nearest], surface.normals[nearest])
    # All four must agree: beside an edge the face round the corner alone would let points outside through.
    inside = (towards < 0).all(axis=1)
    take = belongs & inside & (distance[:, 0] > 0.3 * spacing)
    slope = roughness.slope(place[take])
    stretch = np.sqrt(1 + (slope**2).sum(axis=1))
    normals = (axes[2] - slope @ axes[:2]) / stretch[:, None]
    return points[take], normals, stretch


def _pieces(surface: Surface, kept: np.ndarray) -> int:
    """Number of connected pieces, counted on every third point; specks do not count."""
    index = np.flatnonzero(kept)[::3]
    labels = connected_components(surface.graph(index, 2.5 * np.sqrt(3) * surface.spacing), directed=False)[1]
    return int((np.bincount(labels) > 5).sum())
