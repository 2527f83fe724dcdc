from __future__ import annotations

from collections import defaultdict
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from anomaly3d.ops.voxel import voxel_filter, voxel_filter_torch


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def reference(xyz: np.ndarray, size: float) -> np.ndarray:
    cells = defaultdict(list)
    low = xyz.astype(np.float64).min(0)
    for point in xyz.astype(np.float64):
        cells[tuple(np.floor((point - low) / size).astype(int))].append(point)
    return np.array([np.mean(cells[cell], axis=0) for cell in sorted(cells)])


@pytest.mark.parametrize("size", [0.05, 0.5, 100.0])
def test_centroids_in_the_order_of_the_cells(size: float) -> None:
    xyz = cloud(500)
    assert_close(voxel_filter(xyz, size), torch.from_numpy(reference(xyz.numpy(), size)).float())


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1, 1.0])
def test_both_paths_agree(size: float) -> None:
    """1e-5: keys of 60 bits leave no room for an index, and the argsort runs."""
    xyz = cloud(2_000, 1)
    assert_close(voxel_filter(xyz, size), voxel_filter_torch(xyz, size), rtol=1e-6, atol=1e-7)


def test_as_many_voxels_as_open3d(open3d: ModuleType) -> None:
    xyz = cloud(20_000, 2)
    # Open3d's grid starts half a voxel below the minimum: the same cloud with one point there has the same cells.
    low = xyz.double().amin(0) - 0.05
    found = voxel_filter(torch.cat([xyz.double(), low[None]]), 0.1)
    other = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.double().numpy())).voxel_down_sample(0.1)
    other = np.asarray(other.points)
    found = found.numpy()[~(found == low).all(1).numpy()]
    assert_close(found[np.lexsort(found.T)], other[np.lexsort(other.T)], rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 200), size=st.floats(0.01, 10))
def test_independent_of_the_order_of_the_points(seed: int, n: int, size: float) -> None:
    xyz = cloud(n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    found = voxel_filter(xyz, size)
    assert_close(voxel_filter(xyz[order], size), found, rtol=1e-6, atol=1e-6)
    assert 1 <= len(found) <= n
    assert (found >= xyz.amin(0) - 1e-5).all()
    assert (found <= xyz.amax(0) + 1e-5).all()


def test_degenerate_clouds() -> None:
    assert_close(voxel_filter(torch.tensor([[1.0, 2, 3]]), 0.1), torch.tensor([[1.0, 2, 3]]))
    assert_close(voxel_filter(torch.ones(50, 3), 0.1), torch.ones(1, 3))
    line = torch.linspace(0, 1, 11)[:, None] * torch.tensor([1.0, 0, 0])
    assert len(voxel_filter(line, 2.0)) == 1
    assert voxel_filter(torch.ones(4, 3, dtype=torch.float64), 1).dtype == torch.float64


@pytest.mark.parametrize(
    ("xyz", "size", "message"),
    [
        (torch.zeros(0, 3), 1.0, "empty"),
        (torch.zeros(3, 3), 0.0, "positive"),
        (torch.zeros(3, 3), float("nan"), "positive"),
        (torch.tensor([[0.0, 0, 0], [1, 0, 0]]), 1e-9, "too small"),
        (torch.full((3, 3), torch.nan), 1.0, "NaN"),
    ],
)
def test_bad_input_is_refused(xyz: torch.Tensor, size: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        voxel_filter(xyz, size)
