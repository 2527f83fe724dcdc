"""What every part is made of: dimensions with a tolerance, and exact solids (manifold3d) in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from manifold3d import CrossSection, Manifold, Mesh, OpType

SEGMENTS = 64
_AXES = {"x": (0.0, 90.0, 0.0), "y": (-90.0, 0.0, 0.0), "z": (0.0, 0.0, 0.0)}


class Tolerance:
    """Draws each dimension of one instance from its tolerance band.

    The bands are wide for machined parts (general tolerances of castings and mouldings are nearer): a normal
    part must differ from the templates by about as much as a faint defect does, or the distance to a template
    would solve the data set.
    """

    def __init__(self, rng: np.random.Generator, relative: float = 0.02) -> None:
        self._rng = rng
        self._relative = relative

    def __call__(self, nominal: float, relative: float | None = None) -> float:
        """A length, uniform within `relative` of its nominal value (2 % by default) [ours]."""
        band = self._relative if relative is None else relative
        return nominal * (1 + band * self._rng.uniform(-1, 1))

    def angle(self, degrees: float) -> float:
        """A free angle, uniform in [-degrees, degrees]."""
        return self._rng.uniform(-degrees, degrees)

    def offset(self, millimetres: float) -> float:
        """A position error, uniform in [-millimetres, millimetres]."""
        return self._rng.uniform(-millimetres, millimetres)


def union(*solids: Manifold) -> Manifold:
    """All solids as one, without inner faces."""
    return Manifold.batch_boolean(list(solids), OpType.Add)


def box(size: tuple[float, float, float], centre: tuple[float, float, float] = (0, 0, 0)) -> Manifold:
    """An axis-aligned block."""
    return Manifold.cube(size, center=True).translate(centre)


def cylinder(
    radius: float,
    height: float,
    base: tuple[float, float, float] = (0, 0, 0),
    axis: str = "z",
    segments: int = SEGMENTS,
) -> Manifold:
    """A cylinder that rises by `height` from the centre of its base along +axis."""
    return Manifold.cylinder(height, radius, radius, segments).rotate(_AXES[axis]).translate(base)


def revolve(profile: Sequence[tuple[float, float]], segments: int = SEGMENTS) -> Manifold:
    """A closed (radius, z) outline, in either direction, turned around the z axis."""
    return Manifold.revolve(polygon(profile), segments)


def polygon(outline: Sequence[tuple[float, float]] | np.ndarray) -> CrossSection:
    """A filled outline in the plane, given in either direction."""
    points = np.asarray(outline, dtype=np.float64)
    x, y = points.T
    signed_area = np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)
    return CrossSection([points if signed_area > 0 else points[::-1]])


def prism(section: CrossSection, height: float, base: float = 0.0) -> Manifold:
    """A cross-section extruded from z = base to z = base + height."""
    return Manifold.extrude(section, height).translate((0, 0, base))


def hexagon(across_flats: float, height: float, base: float = 0.0, chamfer: float = 0.0) -> Manifold:
    """A hexagonal prism, its corners turned off at both ends by `chamfer` as on bolts and nuts."""
    corner = across_flats / np.sqrt(3)
    solid = Manifold.cylinder(height, corner, corner, 6).translate((0, 0, base))
    if chamfer == 0:
        return solid
    low, high = base, base + height
    turned = [(0, low), (corner - chamfer * 1.8, low), (corner, low + chamfer)]
    turned += [(corner, high - chamfer), (corner - chamfer * 1.8, high), (0, high)]
    return solid ^ revolve(turned)


def around(solid: Manifold, count: int, phase: float = 0.0) -> Manifold:
    """`count` copies of a solid turned around the z axis at equal angles (degrees)."""
    return union(*(solid.rotate((0, 0, phase + 360 * i / count)) for i in range(count)))


def slot(length: float, width: float) -> CrossSection:
    """A rectangle with round ends along x, centred; `length` includes the ends."""
    reach = (length - width) / 2
    end = CrossSection.circle(width / 2, 32)
    return CrossSection.batch_hull([end.translate((-reach, 0)), end.translate((reach, 0))])


def rounded(width: float, depth: float, radius: float) -> CrossSection:
    """A centred rectangle with round corners."""
    return CrossSection.square((width - 2 * radius, depth - 2 * radius), center=True).offset(
        radius, circular_segments=32
    )


def sweep(path: np.ndarray, radius: float, sides: int = 24) -> Manifold:
    """A round bar of given radius along a smooth open path (K, 3), its ends capped flat."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent[0], np.eye(3)[np.abs(tangent[0]).argmin()])
    angles = 2 * np.pi * np.arange(sides) / sides
    rings = []
    for point, along in zip(path, tangent, strict=True):
        # Carried from ring to ring with the least twist, so the rings' corners line up.
        side = side - along * (side @ along)
        side /= np.linalg.norm(side)
        up = np.cross(along, side)
        rings.append(point + radius * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * up))
    vertices = np.concatenate([*rings, path[[0, -1]]]).astype(np.float32)
    first, last = len(vertices) - 2, len(vertices) - 1
    i = np.arange(len(path) - 1)[:, None] * sides + np.arange(sides)
    j = np.arange(len(path) - 1)[:, None] * sides + np.roll(np.arange(sides), -1)
    around_first, end = np.arange(sides), (len(path) - 1) * sides + np.arange(sides)
    faces = np.concatenate(
        [
            np.stack([i, j, j + sides], -1).reshape(-1, 3),
            np.stack([i, j + sides, i + sides], -1).reshape(-1, 3),
            np.stack([np.full(sides, first), np.roll(around_first, -1), around_first], -1),
            np.stack([np.full(sides, last), end, np.roll(end, -1)], -1),
        ]
    )
    return Manifold(Mesh(vertices, faces.astype(np.uint32)))
