from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from anomaly3d.ops import normals as normals_module
from anomaly3d.ops.normals import estimate_normals, local_pca, orient, surface_variation


def sphere(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


def test_local_pca_matches_numpy() -> None:
    neighbours = torch.randn(4, 5, 30, 3, generator=torch.Generator().manual_seed(0))
    eigenvalues, normals = local_pca(neighbours)
    assert eigenvalues.shape == normals.shape == (4, 5, 3)
    for i in np.ndindex(4, 5):
        covariance = np.cov(neighbours[i].double().numpy().T, bias=True)
        expected, vectors = np.linalg.eigh(covariance)
        assert_close(eigenvalues[i].numpy(), expected.astype(np.float32), rtol=1e-5, atol=1e-7)
        assert abs(normals[i].numpy() @ vectors[:, 0]) > 1 - 1e-5


def test_a_plane_has_its_normal_and_no_variation() -> None:
    generator = torch.Generator().manual_seed(1)
    normal = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5]), dim=0)
    points = torch.randn(40, 3, generator=generator)
    points = points - (points @ normal)[:, None] * normal + 100
    eigenvalues, found = local_pca(points)
    assert abs(found @ normal) > 1 - 1e-6
    assert surface_variation(eigenvalues) < 1e-9


def test_variation_of_an_isotropic_neighbourhood_is_a_third() -> None:
    octahedron = torch.cat([torch.eye(3), -torch.eye(3)])
    eigenvalues, _ = local_pca(octahedron)
    assert_close(eigenvalues, torch.full((3,), 1 / 3))
    assert_close(surface_variation(eigenvalues), torch.tensor(1 / 3))


def test_turning_the_points_turns_the_normal() -> None:
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(30, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.1])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    (values, normal), (turned_values, turned) = local_pca(points), local_pca(points @ turn.T)
    assert_close(turned_values, values, rtol=1e-4, atol=1e-6)
    assert abs(turned @ (turn @ normal)) > 1 - 1e-5


@pytest.mark.parametrize(
    "points",
    [
        torch.ones(1, 3),
        torch.ones(12, 3) * 1e3,
        torch.tensor([[0.0, 0, 0], [1, 1, 1]]),
        torch.linspace(0, 1, 20)[:, None] * torch.tensor([0.3, 0.1, -7.0]),
    ],
    ids=["one", "coincident", "two", "collinear"],
)
def test_degenerate_neighbourhoods_are_finite(points: torch.Tensor) -> None:
    eigenvalues, normal = local_pca(points)
    assert eigenvalues.isfinite().all()
    assert (eigenvalues >= 0).all()
    assert_close(normal.norm(), torch.tensor(1.0))
    assert 0 <= surface_variation(eigenvalues) <= 1e-6


def test_orient_flips_only_what_points_against() -> None:
    normals = torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1]])
    outward = torch.tensor([[0.0, 0, 2], [0, 0, -1], [1, 0, 0]])
    assert orient(normals, outward).tolist() == [[0, 0, 1], [0, 0, -1], [0, 0, 1]]


def test_normals_of_a_sphere_point_outwards(monkeypatch: pytest.MonkeyPatch) -> None:
    xyz = sphere(2_000)
    found = estimate_normals(xyz + 50, 20)
    assert ((found * xyz).sum(1) > 0.95).all()
    assert_close(found.norm(dim=1), torch.ones(2_000))
    monkeypatch.setattr(normals_module, "_CHUNK_POINTS", 300)
    assert torch.equal(estimate_normals(xyz + 50, 20), found)


def test_same_normals_as_open3d(open3d: ModuleType) -> None:
    xyz = sphere(1_000, 3).double() * torch.tensor([1.0, 0.6, 0.4])
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.numpy()))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(20), fast_normal_computation=False)
    agreement = (torch.from_numpy(np.asarray(cloud.normals)) * estimate_normals(xyz, 20)).sum(1).abs()
    assert agreement.min() > 1 - 1e-6


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="k = 4 among 3"):
        estimate_normals(torch.zeros(3, 3), 4)
    with pytest.raises(ValueError, match="empty"):
        local_pca(torch.zeros(2, 0, 3))
