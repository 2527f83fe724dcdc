from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from anomaly3d.models.mamba3dad import voxel_median
from anomaly3d.models.mamba3dad.voxel_median import ball_median


@pytest.mark.parametrize("radius", [0.05, 0.3, 5.0])
def test_equals_loops(radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxel_median, "CHUNK", 37)
    xyz, scores = torch.rand(150, 3), torch.randn(150)
    out = ball_median(xyz, scores, radius)
    for i in range(150):
        near = (xyz.double() - xyz[i].double()).norm(dim=1) <= radius
        assert out[i].item() == pytest.approx(np.median(scores[near].numpy()), abs=1e-6)


def test_on_a_full_grid_it_is_the_median_filter_over_voxels() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), axis=-1)
    values = np.random.default_rng(0).normal(size=(9, 9, 9))
    offset = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), axis=-1)
    ball = (offset**2).sum(-1) <= 9
    expected = median_filter(values, footprint=ball, mode="nearest")[3:-3, 3:-3, 3:-3]
    out = ball_median(torch.from_numpy(grid.reshape(-1, 3)).float(), torch.from_numpy(values.reshape(-1)), 3.0)
    np.testing.assert_allclose(out.numpy().reshape(9, 9, 9)[3:-3, 3:-3, 3:-3], expected)


def test_removes_a_lone_peak_and_keeps_an_edge() -> None:
    x = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij"), -1).reshape(-1, 2)
    xyz = torch.cat([x, torch.zeros(400, 1)], dim=1)
    step = (xyz[:, 0] >= 10).float()
    peaked = step.clone()
    peaked[45] = 9.0
    torch.testing.assert_close(ball_median(xyz, peaked, 3.0), step)
