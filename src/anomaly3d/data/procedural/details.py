"""Small features on a solid: holes, pins, dimples, ribs, grooves; each kind in a repeated pattern."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold, OpType

from anomaly3d.data.procedural.sampling import Mesh


def to_mesh(solid: Manifold) -> Mesh:
    """The solid's triangles in double precision."""
    mesh = solid.to_mesh()
    vertices = np.asarray(mesh.vert_properties, dtype=np.float64)[:, :3]
    return Mesh(vertices, np.asarray(mesh.tri_verts, dtype=np.int64))


def place(solid: Manifold, frame: np.ndarray, at: np.ndarray) -> Manifold:
    """The solid turned by the rotation `frame` (3, 3), then moved to `at` (3,)."""
    return solid.transform(np.column_stack([frame, at]))


def frame_of(normal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rotation (3, 3) that takes z to `normal` (3,), its turn about it either level or free."""
    towards = np.array([0.0, 0.0, 1.0]) if rng.random() < 0.6 and abs(normal[2]) < 0.9 else rng.normal(size=3)
    tangent = np.cross(normal, towards)
    tangent /= np.linalg.norm(tangent)
    return np.column_stack([tangent, np.cross(normal, tangent), normal])


def add_details(solid: Manifold, rng: np.random.Generator) -> Manifold:
    """The solid with one kind of small feature, scattered over its surface or repeated along a line."""
    mesh = to_mesh(solid)
    size = np.ptp(mesh.vertices, axis=0).max() * np.exp(rng.uniform(np.log(0.012), np.log(0.05)))
    tool, operation = _tool(rng, size)
    count = int(rng.integers(1, 9))
    points, faces = mesh.sample(count, rng)
    normals = mesh.normals[faces] / np.linalg.norm(mesh.normals[faces], axis=1, keepdims=True)
    if rng.random() < 0.5:
        frame = frame_of(normals[0], rng)
        step = frame[:, 0] * size * rng.uniform(2.2, 5)
        tools = [place(tool, frame, points[0] + step * (i - (count - 1) / 2)) for i in range(count)]
    else:
        tools = [place(tool, frame_of(n, rng), p) for p, n in zip(points, normals, strict=True)]
    return Manifold.batch_boolean([solid, *tools], operation)


def _tool(rng: np.random.Generator, size: float) -> tuple[Manifold, OpType]:
    """A feature of radius `size` whose z points out of the surface, and whether it adds or removes."""
    deep = size * rng.uniform(1, 12)
    long = size * rng.uniform(6, 30)
    match rng.integers(7):
        case 0:  # hole
            return Manifold.cylinder(2 * deep, size, size, 20, center=True), OpType.Subtract
        case 1:  # countersunk hole
            sink = Manifold.cylinder(1.2 * size, size, 2 * size, 20).translate((0, 0, -size))
            return Manifold.cylinder(2 * deep, size, size, 20, center=True) + sink, OpType.Subtract
        case 2:  # pin
            return Manifold.cylinder(size * rng.uniform(1, 6), size, size * rng.uniform(0.6, 1), 20, center=True), (
                OpType.Add
            )
        case 3:  # dimple
            return Manifold.sphere(1.5 * size, 20).translate((0, 0, size * rng.uniform(0, 0.8))), OpType.Subtract
        case 4:  # wart
            return Manifold.sphere(1.5 * size, 20).translate((0, 0, -size * rng.uniform(0, 0.8))), OpType.Add
        case 5:  # groove
            return Manifold.cube((size, long, 2 * size * rng.uniform(0.5, 2)), center=True), OpType.Subtract
        case _:  # rib
            return Manifold.cube((0.7 * size, long, 2 * size * rng.uniform(0.5, 3)), center=True), OpType.Add
