"""Random closed shapes: a few simple solids joined, cut and detailed, then perhaps deformed."""

from __future__ import annotations

import numpy as np
from manifold3d import Error, Manifold
from scipy.spatial.transform import Rotation

from anomaly3d.data.procedural.deform import deform, to_unit
from anomaly3d.data.procedural.details import add_details, place, to_mesh
from anomaly3d.data.procedural.sampling import Mesh
from anomaly3d.data.procedural.solids import random_primitive

_MOST_FACES = 4000
_FURTHER = [0.12, 0.28, 0.26, 0.18, 0.1, 0.06]
"""Shares of the shapes with 0, 1, ... 5 solids beyond the first."""
_DEFORMED = 0.5
"""Share of the shapes that are deformed."""


def random_shape(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) within the unit ball and faces (F, 3), counter-clockwise from outside, of a random closed solid.

    The generator's state determines the shape. At most about 10 000 faces.
    """
    solid = random_solid(rng)
    if rng.random() >= _DEFORMED:
        mesh = to_mesh(solid)
        return to_unit(mesh.vertices), mesh.faces
    mesh = refined(solid)
    return to_unit(deform(mesh.vertices, rng)), mesh.faces


def random_solid(rng: np.random.Generator) -> Manifold:
    """One to six simple solids as one, before any deformation, in no particular size; never empty."""
    while True:
        solid = _assemble(rng)
        if _sound(solid):
            return solid


def refined(solid: Manifold) -> Mesh:
    """The solid's mesh with edges short enough to bend, in unit size."""
    size = float(np.ptp(np.reshape(solid.bounding_box(), (2, 3)), axis=0).max())
    # Small faces of details stay; the length follows from the area left to divide.
    length = max(0.05 * size, np.sqrt(solid.surface_area() / 1500))
    mesh = to_mesh(solid.refine_to_length(length))
    return Mesh(to_unit(mesh.vertices), mesh.faces)


def _assemble(rng: np.random.Generator) -> Manifold:
    solid = random_primitive(rng)
    for _ in range(rng.choice(6, p=_FURTHER)):
        candidate = _combine(solid, rng)
        # A step that leaves nearly nothing, or changes nearly nothing, is left out.
        if 0.3 * solid.volume() < candidate.volume() and _sound(candidate):
            solid = candidate
    if rng.random() < 0.15:
        plane = rng.normal(size=3) if rng.random() < 0.5 else np.eye(3)[rng.integers(3)]
        solid = solid + solid.mirror(tuple(plane))
    for _ in range(rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])):
        solid = add_details(solid, rng)
    return max(solid.decompose(), key=Manifold.volume, default=solid)


def _combine(solid: Manifold, rng: np.random.Generator) -> Manifold:
    """The solid joined with, cut by or cut to another one, of its own size or smaller."""
    bounds = np.reshape(solid.bounding_box(), (2, 3))
    scale = np.ptp(bounds, axis=0).max() / 2 * np.exp(rng.uniform(np.log(0.2), np.log(1.1)))
    tool = random_primitive(rng).scale((scale, scale, scale))
    frame = _axes(rng) if rng.random() < 0.6 else Rotation.from_quat(rng.normal(size=4)).as_matrix()
    at = bounds.mean(axis=0)
    if rng.random() < 0.7:
        at = to_mesh(solid).sample(1, rng)[0][0]
    elif rng.random() < 0.5:
        at = at + rng.uniform(-0.5, 0.5) * np.ptp(bounds, axis=0) * np.eye(3)[rng.integers(3)]
    tool = place(tool, frame, at)
    choice = rng.random()
    if choice < 0.55:
        return solid + tool
    return solid - tool if choice < 0.9 else solid ^ tool


def _axes(rng: np.random.Generator) -> np.ndarray:
    """A rotation (3, 3) by right angles."""
    frame = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    return frame * np.linalg.det(frame)


def _sound(solid: Manifold) -> bool:
    """Whether a solid is valid, has a moderate number of faces and is not a mere sliver."""
    if solid.status() != Error.NoError or solid.is_empty() or solid.num_tri() > _MOST_FACES:
        return False
    extent = np.sort(np.ptp(np.reshape(solid.bounding_box(), (2, 3)), axis=0))
    # The mean thickness, 2 volume / area, also of shapes that lie askew in their box.
    thickness = 2 * solid.volume() / solid.surface_area()
    return bool(extent[1] > 0.12 * extent[2] and thickness > 0.012 * extent[2])
