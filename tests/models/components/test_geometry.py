from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group
from torch import Tensor

from anomaly3d.models.components.geometry import geometric_variation, geometry_descriptor


def surface(seed: int = 0, n: int = 60) -> Tensor:
    """A wavy ellipsoid: curvature and normals vary everywhere."""
    x = np.random.default_rng(seed).normal(size=(n, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x *= [1.0, 0.7, 0.5] * (1 + 0.1 * np.sin(5 * x[:, :1]))
    return torch.from_numpy(x / np.linalg.norm(x, axis=1).max()).float()


def reference(centres: np.ndarray, factor: float, points: np.ndarray | None = None) -> np.ndarray:
    """Supplement B, one centre and one neighbour at a time."""
    points = centres if points is None else points
    n = len(centres)
    gaps = [min(np.linalg.norm(centres[i] - centres[j]) for j in range(n) if j != i) for i in range(n)]
    radius = factor * np.mean(gaps)
    normals, curvature = [], []
    for s in centres:
        near = np.array([p for p in points if np.linalg.norm(p - s) <= radius])
        if len(near) < 3:  # no plane: no curvature, and no part in the angles
            normals.append(None)
            curvature.append(0.0)
            continue
        eigenvalues, vectors = np.linalg.eigh(np.cov(near.T, bias=True))
        normal = vectors[:, 0]
        normals.append(normal if normal @ (s - centres.mean(0)) >= 0 else -normal)
        curvature.append(eigenvalues[0] / eigenvalues.sum())
    h = np.zeros((n, 2))
    for i in range(n):
        near = [j for j in range(n) if j != i and np.linalg.norm(centres[i] - centres[j]) <= radius]
        facing = [j for j in near if normals[i] is not None and normals[j] is not None]
        if facing:
            h[i, 0] = np.mean([np.arccos(np.clip(normals[i] @ normals[j], -1, 1)) for j in facing])
        if near:
            h[i, 1] = np.mean([abs(curvature[i] - curvature[j]) for j in near])
    return (h - h.mean(0)) / (h.std(0) + 1e-6)


@pytest.mark.parametrize("factor", [3.0, 7.0])
def test_descriptor_is_supplement_b(factor):
    centres = torch.stack([surface(0), surface(1)])
    expected = np.stack([reference(c.double().numpy(), factor) for c in centres])
    np.testing.assert_allclose(geometry_descriptor(centres, factor).numpy(), expected, atol=1e-4)


def test_descriptor_with_neighbours_from_the_whole_cloud():
    cloud = surface(2, 400)
    centres = cloud[::8]
    expected = reference(centres.double().numpy(), 2.0, cloud.double().numpy())
    result = geometry_descriptor(centres[None], 2.0, [cloud])[0]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-4)
    assert (result - geometry_descriptor(centres[None], 2.0)[0]).abs().max() > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_rigid_motion_and_scale_change_nothing(seed):
    centres = surface(seed)
    rotation = torch.from_numpy(special_ortho_group.rvs(3, random_state=seed)).float()
    moved = 1.7 * centres @ rotation.T + torch.tensor([0.2, -0.1, 0.3])
    torch.testing.assert_close(
        geometry_descriptor(moved[None], 3.0), geometry_descriptor(centres[None], 3.0), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_plate_that_stands_obliquely_is_as_flat_as_one_that_lies(seed):
    plate = torch.rand(200, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([2.0, 1.0, 0.0])
    rotation = torch.from_numpy(special_ortho_group.rvs(3, random_state=seed)).float()
    for cloud in (plate, plate @ rotation.T, plate @ rotation.T + 0.1):
        assert geometric_variation(cloud[None], 3.0)[..., 0].max() < 1e-3


def test_order_of_centres_is_carried_along():
    centres, order = surface(3), torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        geometry_descriptor(centres[None, order], 3.0)[0], geometry_descriptor(centres[None], 3.0)[0, order]
    )


def test_columns_are_standardised_and_a_ridge_stands_out():
    # Two planes that meet at a right angle: normals vary at the edge only.
    u, v = torch.meshgrid(torch.linspace(0.05, 1, 12), torch.linspace(-0.5, 0.5, 12), indexing="ij")
    floor = torch.stack([u, v, torch.zeros_like(u)], -1).reshape(-1, 3)
    wall = torch.stack([torch.zeros_like(u), v, u], -1).reshape(-1, 3)
    h = geometry_descriptor(torch.cat([floor, wall])[None], 2.0)[0]
    torch.testing.assert_close(h.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(h.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    edge = torch.cat([u.reshape(-1), u.reshape(-1)]) < 0.15
    assert h[edge, 0].mean() > h[~edge, 0].mean() + 1


@pytest.mark.parametrize(
    "centres",
    [
        torch.zeros(1, 20, 3),
        torch.full((1, 20, 3), 0.3),
        torch.linspace(-1, 1, 20)[None, :, None] * torch.tensor([0.5, 0.5, 0.2]),
        torch.rand(1, 20, 3) * torch.tensor([1.0, 1.0, 0.0]),
        torch.rand(1, 1, 3),
        torch.rand(1, 2, 3),
        torch.cat([torch.rand(1, 5, 3).repeat(1, 4, 1)], dim=1),
        torch.cat([torch.rand(1, 19, 3) * 1e-3, torch.ones(1, 1, 3)], dim=1),
    ],
    ids=["origin", "coincident", "line", "plane", "one", "two", "repeated", "outlier"],
)
@pytest.mark.parametrize("from_cloud", [False, True])
def test_degenerate_neighbourhoods_are_finite(centres, from_cloud):
    for factor in (0.5, 7.0):
        h = geometry_descriptor(centres, factor, list(centres) if from_cloud else None)
        assert h.shape == (*centres.shape[:2], 2)
        assert h.isfinite().all()
        assert h.abs().max() < 20


def test_autocast_does_not_reach_the_geometry():
    centres = surface(0)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = geometry_descriptor(centres, 3.0)
    assert torch.equal(inside, geometry_descriptor(centres, 3.0))
