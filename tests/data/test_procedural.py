"""The stream of random shapes: what depends on what, exact sampling, sound and different shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from torch.utils.data import DataLoader, Subset

from anomaly3d.data.procedural import stream
from anomaly3d.data.procedural.deform import deform
from anomaly3d.data.procedural.details import to_mesh
from anomaly3d.data.procedural.probe import labelled_clouds
from anomaly3d.data.procedural.sampling import Mesh
from anomaly3d.data.procedural.shapes import random_shape, random_solid
from anomaly3d.data.procedural.stream import ProceduralClouds

POINTS = 512


def _trimesh(vertices: np.ndarray, faces: np.ndarray) -> trimesh.Trimesh:
    return trimesh.Trimesh(vertices, faces, process=False)


def _box(*size: float) -> Mesh:
    box = trimesh.creation.box(size)
    return Mesh(np.asarray(box.vertices), np.asarray(box.faces))


@pytest.fixture(scope="module")
def first() -> list[torch.Tensor]:
    stream = ProceduralClouds(POINTS, seed=3)
    return [stream[index] for index in range(48)]


def test_a_cloud_depends_on_seed_and_index_only(first: list[torch.Tensor]) -> None:
    for index in (47, 0, 30, 7):
        assert torch.equal(ProceduralClouds(POINTS, seed=3)[index], first[index])
    assert not torch.equal(ProceduralClouds(POINTS, seed=4)[0], first[0])
    assert ProceduralClouds(POINTS, seed=3)[2**31 + 5].shape == (POINTS, 3)


@pytest.mark.slow
def test_workers_draw_the_same_clouds(first: list[torch.Tensor]) -> None:
    loader = DataLoader(Subset(ProceduralClouds(POINTS, seed=3), range(10, 26)), batch_size=8, num_workers=2)
    assert torch.equal(torch.cat(list(loader)), torch.stack(first[10:26]))


def test_clouds_have_zero_mean_and_unit_radius(first: list[torch.Tensor]) -> None:
    clouds = torch.stack(first)
    assert clouds.dtype == torch.float32
    assert clouds.shape == (48, POINTS, 3)
    assert clouds.mean(dim=1).abs().max() < 1e-6
    assert torch.allclose(clouds.norm(dim=2).amax(dim=1), torch.ones(48))


@pytest.mark.parametrize("bad", [{"points": 0}, {"seed": -1}, {"views": 0}])
def test_impossible_arguments_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        ProceduralClouds(**bad)


@pytest.mark.parametrize("seed", range(40))
def test_shapes_are_closed_and_face_outwards(seed: int) -> None:
    mesh = to_mesh(random_solid(np.random.default_rng(seed)))
    solid = _trimesh(mesh.vertices, mesh.faces)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert solid.volume > 0
    vertices, faces = random_shape(np.random.default_rng(seed))
    shape = _trimesh(vertices, faces)
    assert shape.is_watertight
    assert shape.volume > 0
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(1)
    assert len(faces) < 16_000


def test_deformations_keep_faces_outwards() -> None:
    ball = trimesh.creation.icosphere(3)
    for seed in range(30):
        vertices = deform(np.asarray(ball.vertices), np.random.default_rng(seed))
        outward = _trimesh(vertices, ball.faces)
        assert np.einsum("ij,ij->i", outward.face_normals, outward.triangles_center - outward.centroid).min() > -0.5
        assert outward.volume > 0.05
        assert np.abs(vertices - ball.vertices).max() > 0.02


def test_shapes_differ() -> None:
    """In slenderness, in hollowness and in the number of handles, over the whole range of each."""
    slender, compact, euler = [], [], set()
    for seed in range(60):
        shape = _trimesh(*random_shape(np.random.default_rng([8, seed])))
        widths = np.sqrt(np.linalg.eigvalsh(np.cov(np.asarray(shape.sample(500, seed=0)), rowvar=False)))
        slender.append(widths[0] / widths[2])
        compact.append(36 * np.pi * shape.volume**2 / shape.area**3)  # 1 for a ball
        euler.add(shape.euler_number)
    assert np.percentile(slender, 10) < 0.3 < 0.7 < np.percentile(slender, 90)
    assert np.percentile(compact, 10) < 0.08 < 0.4 < np.percentile(compact, 90)
    assert len(euler) > 5


def test_points_lie_on_their_faces() -> None:
    for seed in range(5):
        mesh = Mesh(*random_shape(np.random.default_rng(seed)))
        points, faces = mesh.sample(2000, np.random.default_rng(0))
        triangles = mesh.vertices[mesh.faces[faces]]
        weights = trimesh.triangles.points_to_barycentric(triangles, points)
        large = mesh.areas[faces] > 1e-8  # weights of slivers are ill-conditioned
        assert weights[large].min() > -1e-4
        assert np.abs(np.einsum("nij,ni->nj", triangles, weights) - points)[large].max() < 1e-6


def test_points_are_even_over_a_box() -> None:
    box = _box(1, 2, 3)
    points, _ = box.sample(60_000, np.random.default_rng(0))
    side = np.abs(points) / [0.5, 1, 1.5]
    assert np.allclose(side.max(axis=1), 1)
    share = np.bincount(side.argmax(axis=1), minlength=3) / len(points)
    assert np.allclose(share, np.array([6, 3, 2]) / 11, atol=0.01)
    face = points[side.argmax(axis=1) == 0]
    cells = np.histogram2d(face[:, 1], face[:, 2], bins=4)[0]
    assert cells.min() > 0.9 * cells.mean()


def test_uneven_density_follows_its_weight() -> None:
    points = _box(1e-3, 1, 1).sample_unevenly(40_000, np.random.default_rng(0), lambda x: 0.6 + 0.8 * x[:, 1] / 2)
    assert len(points) == 40_000
    # Density 0.6 + 0.4 y over [-0.5, 0.5]: mean y is 0.4 / 12 / 0.6.
    assert points[:, 1].mean() == pytest.approx(0.4 / 12 / 0.6, abs=0.005)


def test_one_sided_clouds_hold_faces_towards_the_camera_only() -> None:
    mesh = Mesh(*random_shape(np.random.default_rng(1)))
    camera = np.array([0.3, -0.5, 0.8])
    points, faces = mesh.sample(5000, np.random.default_rng(0), camera)
    assert points.shape == (5000, 3)
    assert (mesh.normals[faces] @ camera > 0).all()
    points, _ = _box(1, 1, 1).sample(1000, np.random.default_rng(0), np.array([0.0, 0.0, 2.0]))
    assert np.allclose(points[:, 2], 0.5)


def test_a_quarter_of_the_views_is_one_sided(monkeypatch: pytest.MonkeyPatch) -> None:
    sphere = trimesh.creation.icosphere(2)
    mesh = Mesh(np.asarray(sphere.vertices), np.asarray(sphere.faces))
    cameras = []
    sample = Mesh.sample
    monkeypatch.setattr(
        Mesh, "sample", lambda self, n, rng, camera=None: cameras.append(camera) or sample(self, n, rng, camera)
    )
    monkeypatch.setattr(stream, "_UNEVEN", 0)
    for seed in range(200):
        stream.view(mesh, 16, np.random.default_rng(seed))
    assert 30 < sum(camera is not None for camera in cameras) < 70


def test_labelled_clouds_are_alike_within_a_class() -> None:
    clouds, labels = labelled_clouds(classes=4, per_class=3, points=POINTS, seed=1)
    assert clouds.shape == (12, POINTS, 3)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert clouds.norm(dim=2).amax(dim=1) == pytest.approx(1)
    assert torch.equal(labelled_clouds(2, 2, POINTS, seed=1)[0][2:], clouds[3:5])
    distance = torch.cdist(clouds[:, None], clouds[None]).amin(dim=-1).mean(dim=-1)
    distance = distance + distance.T
    same = labels[:, None] == labels
    assert distance[same & ~torch.eye(12, dtype=torch.bool)].mean() < 0.6 * distance[~same].mean()
