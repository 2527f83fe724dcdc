"""Parts: closed solids of the right size, with real tolerances."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trimesh

from anomaly3d.data.synthetic.shapes import CATEGORIES, build_part
from anomaly3d.data.synthetic.shapes.solids import (
    Tolerance,
    around,
    box,
    cylinder,
    hexagon,
    revolve,
    rounded,
    slot,
    sweep,
)
from anomaly3d.data.synthetic.surface import sample_surface


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_part_is_one_closed_solid(category: str) -> None:
    part = build_part(category, np.random.default_rng(3))
    assert part.is_watertight
    assert part.is_winding_consistent
    assert part.volume > 0  # faces are oriented outwards
    assert part.body_count == 1
    assert np.allclose(part.bounds.sum(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_instances_differ_within_tolerance(category: str) -> None:
    parts = [build_part(category, np.random.default_rng(seed)) for seed in range(4)]
    volumes = np.array([part.volume for part in parts])
    assert np.ptp(volumes) > 1e-3 * volumes.mean()
    assert np.ptp(volumes) < 0.35 * volumes.mean()
    extents = np.array([part.extents for part in parts])
    assert (np.ptp(extents, axis=0) < 0.12 * extents.max()).all()
    again = build_part(category, np.random.default_rng(0))
    assert np.array_equal(again.vertices, parts[0].vertices)
    assert np.array_equal(again.faces, parts[0].faces)


def test_category_names_survive_in_file_names() -> None:
    assert len(CATEGORIES) >= 12
    assert all(re.fullmatch(r"[a-z]+", name) for name in CATEGORIES)


def test_tolerance_stays_in_its_band() -> None:
    tolerance = Tolerance(np.random.default_rng(0))
    drawn = np.array([tolerance(50.0) for _ in range(500)])
    assert drawn.min() > 49 - 1e-9
    assert drawn.max() < 51 + 1e-9
    assert np.ptp(drawn) > 1.8
    assert np.ptp([tolerance(50.0, 0.0) for _ in range(5)]) == 0


def test_solids_have_their_textbook_volumes() -> None:
    circle = 64 * np.sin(2 * np.pi / 64) / 2  # area of the 64-gon that stands for a unit circle
    assert box((1, 2, 3)).volume() == pytest.approx(6)
    assert cylinder(2, 5, axis="x").volume() == pytest.approx(4 * circle * 5)
    assert hexagon(2, 3).volume() == pytest.approx(2 * np.sqrt(3) * 3)
    assert revolve([(1, 0), (1, 4), (2, 4), (2, 0)]).volume() == pytest.approx(3 * circle * 4)
    assert around(box((1, 1, 1), (5, 0, 0)), 4).volume() == pytest.approx(4)
    assert slot(5, 2).area() == pytest.approx(6 + np.pi, rel=0.02)
    assert rounded(5, 3, 1).area() == pytest.approx(15 - 4 + np.pi, rel=0.02)


def test_cylinder_points_along_its_axis() -> None:
    for k, axis in enumerate("xyz"):
        low_x, low_y, low_z, high_x, high_y, high_z = cylinder(1, 7, (0, 0, 0), axis).bounding_box()
        low, high = (low_x, low_y, low_z), (high_x, high_y, high_z)
        assert low[k] == pytest.approx(0, abs=1e-6)
        assert high[k] == pytest.approx(7)


def test_sweep_along_a_circle_is_a_torus() -> None:
    angle = np.linspace(0, np.pi, 200)
    half = sweep(np.stack([10 * np.cos(angle), 10 * np.sin(angle), 0 * angle], -1), 2, sides=96)
    assert half.volume() == pytest.approx(np.pi * 10 * np.pi * 4, rel=5e-3)


def test_surface_sample_is_on_the_mesh_and_even() -> None:
    mesh = trimesh.creation.box((2, 4, 6))
    surface = sample_surface(mesh, 20_000, np.random.default_rng(0))
    assert surface.diagonal == pytest.approx(np.sqrt(56))
    half = np.array([1, 2, 3])
    assert np.allclose(np.abs(surface.points / half).max(axis=1), 1)
    # Outward normals, and faces hit in proportion to their area.
    assert (np.einsum("ij,ij->i", surface.points, surface.normals) > 0).all()
    share = np.array([np.abs(surface.normals[:, k]).mean() for k in range(3)])
    assert np.allclose(share, np.array([24, 12, 8]) / 44, atol=0.02)
    assert surface.point_area == pytest.approx(88 / 20_000, rel=0.1)
