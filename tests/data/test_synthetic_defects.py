"""Defects: exact labels by distance to the intact solid, closed forms, and behaviour on plain clouds."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import KDTree

from anomaly3d.data.synthetic.defects import THRESHOLD, Defect, DefectError, Kind, apply_defect, make_defect
from anomaly3d.data.synthetic.defects.bending import _bend
from anomaly3d.data.synthetic.defects.broken import broken
from anomaly3d.data.synthetic.defects.bump import bump
from anomaly3d.data.synthetic.defects.common import warp
from anomaly3d.data.synthetic.defects.hole import hole
from anomaly3d.data.synthetic.shapes import CATEGORIES, build_part
from anomaly3d.data.synthetic.surface import Surface, sample_surface
from anomaly3d.data.synthetic.visibility import orient_outward
from anomaly3d.ops.normals import estimate_normals

KINDS: tuple[Kind, ...] = get_args(Kind)


def _part(category: str, seed: int = 0, count: int = 20_000) -> tuple[trimesh.Trimesh, Surface]:
    mesh = build_part(category, np.random.default_rng(seed))
    return mesh, sample_surface(mesh, count, np.random.default_rng(seed + 1))


def _signed_distance(mesh: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Exact distance to the intact surface by open3d, negative inside, in diagonals."""
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(mesh.vertices.astype(np.float32)), o3d.core.Tensor(mesh.faces.astype(np.uint32))
    )
    distance = scene.compute_signed_distance(o3d.core.Tensor(points.astype(np.float32))).numpy()
    return distance / float(np.linalg.norm(mesh.extents))


def _check(mesh: trimesh.Trimesh, kind: Kind, defect: Defect) -> None:
    assert 0.01 <= defect.share <= 0.10
    assert np.allclose(np.linalg.norm(defect.surface.normals, axis=1), 1)
    assert len(defect.mask) == len(defect.weight) == len(defect.surface.points)
    assert (defect.weight > 0).all()
    distance = _signed_distance(mesh, defect.surface.points)
    assert np.abs(distance[~defect.mask]).max() < THRESHOLD + 1e-4
    away = distance[defect.mask & (np.abs(distance) > THRESHOLD)]
    assert len(away) > 0.1 * defect.mask.sum()
    if kind in ("hole", "broken", "crak"):
        assert np.quantile(away, 0.95) < 0  # new surfaces lie in the material


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("category", ["flange", "hinge", "valve"])
def test_labels_are_exact(category: str, kind: Kind) -> None:
    mesh, surface = _part(category)
    _check(mesh, kind, make_defect(surface, kind, np.random.default_rng(5)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_labels_are_exact_everywhere(category: str, kind: Kind) -> None:
    for seed in range(2):
        mesh, surface = _part(category, seed)
        _check(mesh, kind, make_defect(surface, kind, np.random.default_rng(seed + 11)))


@pytest.mark.parametrize(("kind", "sign"), [("bulge", 1), ("concavity", -1)])
def test_bumps_go_the_right_way_as_high_as_they_say(kind: Kind, sign: int) -> None:
    mesh = trimesh.creation.icosphere(5, 10.0)
    surface = sample_surface(mesh, 20_000, np.random.default_rng(0))
    defect = make_defect(surface, kind, np.random.default_rng(1))
    radius = np.linalg.norm(defect.surface.points, axis=1)
    height = (radius - 10.0) / surface.diagonal
    assert np.sign(defect.parameters["height"]) == sign
    top = height[np.abs(height).argmax()]
    assert top == pytest.approx(defect.parameters["height"], rel=0.05)
    # Points move along the normal only: the direction from the centre stays.
    before = surface.points / np.linalg.norm(surface.points, axis=1, keepdims=True)
    assert np.einsum("ij,ij->i", before, defect.surface.points / radius[:, None]).min() > 0.999


def test_only_one_side_of_a_thick_plate_moves_but_both_of_a_thin_one() -> None:
    def moved(thickness: float) -> tuple[int, int]:
        mesh = trimesh.creation.box((100, 100, thickness))
        surface = sample_surface(mesh, 30_000, np.random.default_rng(0))
        for seed in range(30):
            # Away from the edges the answer is clear.
            defect = bump(surface, np.random.default_rng(seed), 0.5, 1.0)
            middle = np.abs(defect.surface.points[defect.mask, :2]).max()
            top = np.abs(surface.normals[defect.mask, 2]) > 0.5
            if middle < 45 and top.all():
                sides = surface.points[defect.mask, 2] > 0
                return int(sides.sum()), int((~sides).sum())
        raise AssertionError("no bump in the middle")

    above, below = moved(20)
    assert min(above, below) == 0
    above, below = moved(2)
    assert 0.8 < above / below < 1.25


def test_bored_plate_is_empty_in_the_bore_and_has_its_wall() -> None:
    mesh = trimesh.creation.box((100, 100, 8))
    surface = sample_surface(mesh, 40_000, np.random.default_rng(0))
    for seed in range(50):
        try:
            defect = hole(surface, np.random.default_rng(seed), 1.0)
        except DefectError:
            continue
        fresh = defect.surface.points[defect.mask & (np.abs(defect.surface.normals[:, 2]) < 0.1)]
        if defect.parameters["through"] and np.abs(fresh[:, :2]).max() < 46:
            break
    else:
        raise AssertionError("no hole through the plate")
    centre = (fresh[:, :2].max(axis=0) + fresh[:, :2].min(axis=0)) / 2
    radius = defect.parameters["radius"] * surface.diagonal
    lateral = np.linalg.norm(defect.surface.points[:, :2] - centre, axis=1)
    assert lateral.min() > 0.8 * radius
    wall = np.linalg.norm(fresh[:, :2] - centre, axis=1)
    assert np.abs(wall / radius - 1).max() < 0.15
    assert fresh[:, 2].min() == pytest.approx(-4, abs=0.1)
    assert fresh[:, 2].max() == pytest.approx(4, abs=0.1)
    area = 2 * np.pi * radius * 8
    assert len(fresh) * surface.point_area == pytest.approx(area, rel=0.15)
    normals = defect.surface.normals[defect.mask & (np.abs(defect.surface.normals[:, 2]) < 0.1), :2]
    assert (np.einsum("ij,ij->i", normals, fresh[:, :2] - centre) < 0).all()


def test_broken_bar_is_shorter_and_closed_by_its_fracture() -> None:
    mesh = trimesh.creation.box((20, 20, 200))
    surface = sample_surface(mesh, 12_000, np.random.default_rng(0))
    seed = next(s for s in range(60) if _axial(surface, s))
    defect = broken(surface, np.random.default_rng(seed), 1.0)
    fresh = defect.surface.points[-int((defect.weight != 1).sum()) :]
    assert np.abs(fresh[:, :2]).max() < 10 + 0.3 * surface.spacing
    # The face spans the bar's section: its area projects to 20 x 20.
    normals = defect.surface.normals[-len(fresh) :]
    across = (defect.weight[-len(fresh) :] * np.abs(normals[:, 2])).sum() * surface.point_area
    assert across == pytest.approx(400, rel=0.2)
    heights = defect.surface.points[:, 2] * np.sign(fresh[:, 2].mean())
    assert heights.max() < 100 - 2
    assert heights.max() == pytest.approx(np.abs(fresh[:, 2]).max(), abs=1.0)


def _axial(surface: Surface, seed: int) -> bool:
    """Whether this seed breaks the bar about straight across."""
    try:
        defect = broken(surface, np.random.default_rng(seed), 1.0)
    except DefectError:
        return False
    fresh = defect.surface.points[defect.weight != 1]
    return len(fresh) > 30 and np.ptp(fresh[:, 2]) < 14 and np.ptp(fresh[:, 0]) > 16 and np.ptp(fresh[:, 1]) > 16


def test_bent_beam_keeps_its_centre_line_and_cross_sections() -> None:
    along, angle, length = np.linspace(0, 3, 301), 0.6, 3.0
    u, v = _bend(along, np.zeros(301), length, angle)
    assert np.hypot(np.diff(u), np.diff(v)).sum() == pytest.approx(length, rel=1e-5)
    assert np.allclose([u[0], v[0]], 0)
    # End tangent turned by the angle; a cross-section stays straight and as wide.
    assert np.arctan2(v[-1] - v[-2], u[-1] - u[-2]) == pytest.approx(angle, abs=2e-3)
    edge_u, edge_v = _bend(along, np.full(301, 0.25), length, angle)
    assert np.allclose(np.hypot(edge_u - u, edge_v - v), 0.25)


def test_warp_carries_normals_and_areas_like_the_analytic_surface() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(-1, 1, (500, 2))
    surface = Surface(np.column_stack([xy, np.zeros(500)]), np.tile([0.0, 0.0, 1.0], (500, 1)), 1.0)
    height = 0.3 * np.sin(2 * xy[:, 0]) * np.cos(xy[:, 1])
    slope = 0.3 * np.stack(
        [2 * np.cos(2 * xy[:, 0]) * np.cos(xy[:, 1]), -np.sin(2 * xy[:, 0]) * np.sin(xy[:, 1]), 0 * xy[:, 0]], axis=1
    )
    points, normals, stretch = warp(surface, np.arange(500), height, surface.normals, slope)
    expected = np.array([0, 0, 1]) - slope
    assert np.allclose(points[:, 2], height)
    assert np.allclose(stretch, np.linalg.norm(expected, axis=1))
    assert np.allclose(normals, expected / stretch[:, None])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2000, 6000])
def test_plain_cloud_with_estimated_normals(kind: Kind, count: int) -> None:
    _, surface = _part("flange", count=count)
    points = surface.points.astype(np.float32)
    normals = estimate_normals(torch.from_numpy(points), 16).numpy()
    normals = orient_outward(points, normals, surface.spacing)
    given = points.copy()
    changed, mask = apply_defect(points, normals, kind, np.random.default_rng(2))
    assert np.array_equal(points, given)
    assert changed.dtype == np.float32
    assert mask.dtype == bool
    assert changed.shape == (len(mask), 3)
    assert np.isfinite(changed).all()
    assert 0.01 <= mask.mean() <= 0.10
    # Unlabelled points are points of the cloud, moved by less than the threshold, in their order.
    distance, index = map(np.asarray, KDTree(points).query(changed[~mask]))
    diagonal = np.linalg.norm(np.ptp(points, axis=0))
    assert distance.max() <= THRESHOLD * diagonal * 1.001
    still = distance == 0
    assert still.mean() > 0.8
    assert (np.diff(index[still]) > 0).all()
    if kind not in ("hole", "broken"):
        assert len(changed) == count


@pytest.mark.parametrize("kind", KINDS)
def test_unit_of_the_cloud_does_not_matter(kind: Kind) -> None:
    _, surface = _part("bracket", count=4000)
    small, small_mask = apply_defect(surface.points, surface.normals, kind, np.random.default_rng(4))
    large, large_mask = apply_defect(surface.points * 1024, surface.normals, kind, np.random.default_rng(4))
    assert np.array_equal(small_mask, large_mask)
    assert np.allclose(small * 1024, large, rtol=0, atol=1e-6 * 1024 * surface.diagonal)


def test_same_generator_same_defect_other_generator_another() -> None:
    _, surface = _part("gear", count=4000)
    first, second, third = (
        apply_defect(surface.points, surface.normals, "crak", np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_share_limits_are_kept() -> None:
    _, surface = _part("valve", count=8000)
    for low, high in ((0.01, 0.015), (0.06, 0.09)):
        for kind in ("bulge", "bending"):
            _, mask = apply_defect(surface.points, surface.normals, kind, np.random.default_rng(3), (low, high))
            assert low <= mask.mean() <= high


def test_no_place_for_a_hole_on_a_wire() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 3000)
    normals = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    wire = 0.004 * normals + rng.uniform(0, 1, (3000, 1)) * [0, 0, 1]
    with pytest.raises(DefectError, match="no hole after"):
        apply_defect(wire, normals, "hole", rng)
