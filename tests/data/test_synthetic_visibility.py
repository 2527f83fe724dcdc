"""Visibility against a sphere, two plates, and ray casting; normals turned outwards."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from anomaly3d.data.synthetic.shapes import build_part
from anomaly3d.data.synthetic.surface import sample_surface
from anomaly3d.data.synthetic.visibility import directions, orient_outward, visible_points


def test_sphere_shows_its_front() -> None:
    normals = directions(20_000, np.random.default_rng(0))
    seen = visible_points(normals, normals, np.array([0.0, 0.0, 2.0]), np.sqrt(4 * np.pi / 20_000))
    facing = normals[:, 2] > 0.1
    assert not seen[~facing].any()
    assert seen[facing].mean() > 0.99


def test_front_plate_hides_what_is_behind_it() -> None:
    plane = np.random.default_rng(0).uniform(-1, 1, (8000, 2))
    points = np.concatenate(
        [np.column_stack([plane * 0.5, np.full(8000, 0.3)]), np.column_stack([plane, np.zeros(8000)])]
    )
    normals = np.tile([0.0, 0.0, 1.0], (16_000, 1))
    spacing = np.sqrt(4 / 8000)
    seen = visible_points(points, normals, np.array([0.0, 0.0, 1.0]), spacing)
    inside = np.abs(plane).max(axis=1) < 0.5
    outside = np.abs(plane).max(axis=1) > 0.5 + 4 * spacing
    assert seen[:8000].all()
    assert not seen[8000:][inside].any()
    assert seen[8000:][outside].all()


@pytest.mark.parametrize("category", ["clamp", "flange", "housing"])
def test_agrees_with_ray_casting(category: str) -> None:
    mesh = build_part(category, np.random.default_rng(0))
    surface = sample_surface(mesh, 40_000, np.random.default_rng(1))
    for direction in directions(3, np.random.default_rng(2)):
        seen = visible_points(surface.points, surface.normals, direction, surface.spacing)
        free = ~_hit(mesh, surface.points + 1e-3 * surface.normals, direction)
        truth = free & (surface.normals @ direction > 0.1)
        assert (seen == truth).mean() > 0.96
        assert (seen & ~truth).sum() < 0.02 * truth.sum()


def _hit(mesh: trimesh.Trimesh, origins: np.ndarray, direction: np.ndarray) -> np.ndarray:
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(mesh.vertices.astype(np.float32)), o3d.core.Tensor(mesh.faces.astype(np.uint32))
    )
    rays = np.concatenate([origins, np.broadcast_to(direction, origins.shape)], axis=1).astype(np.float32)
    return np.isfinite(scene.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy())


@pytest.mark.parametrize("category", ["flange", "tee"])
def test_normals_with_random_signs_are_turned_outwards(category: str) -> None:
    mesh = build_part(category, np.random.default_rng(0))
    surface = sample_surface(mesh, 20_000, np.random.default_rng(1))
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (20_000, 1))
    turned = orient_outward(surface.points, signs * surface.normals, surface.spacing)
    assert np.allclose(np.abs(turned), np.abs(surface.normals))
    right = np.einsum("ij,ij->i", turned, surface.normals) > 0
    assert right.mean() > 0.94
    # Inside the bore "away from the centroid" is wrong everywhere.
    inwards = np.einsum("ij,ij->i", surface.points, surface.normals) < -0.2 * np.linalg.norm(surface.points, axis=1)
    assert inwards.sum() > 1000
    assert right[inwards].mean() > 0.85
