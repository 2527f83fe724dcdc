"""Patches against brute force, and their independence of the file's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from anomaly3d.errors import InputError
from anomaly3d.models.components.patches import PatchSampler
from anomaly3d.types import PointCloudBatch


def batch_of(*sizes: int, scale: float = 1.0, seed: int = 0) -> PointCloudBatch:
    generator = torch.Generator().manual_seed(seed)
    clouds = [scale * torch.randn(n, 3, generator=generator) + 5 * scale for n in sizes]
    return PointCloudBatch.pack(clouds, [f"cloud{i}" for i in range(len(sizes))])


@pytest.mark.parametrize("canonical", [True, False])
def test_patches_are_the_nearest_neighbours_in_the_unit_sphere(canonical: bool) -> None:
    batch = batch_of(200, 150)
    patches = PatchSampler(8, 12, canonical=canonical)(batch)
    for b, original in enumerate(batch.clouds()):
        cloud = patches.cloud[b]
        assert cloud.mean(dim=0).abs().max() < 1e-6
        assert cloud.norm(dim=1).max() == pytest.approx(1)
        framed = patches.in_frame(original, b)
        assert cdist(framed, cloud).min(axis=1).max() < 1e-6
        distance = cdist(patches.centres[b], cloud)
        np.testing.assert_array_equal(patches.index[b], np.argsort(distance, axis=1, kind="stable")[:, :12])
        absolute = patches.points[b] + patches.centres[b][:, None]
        torch.testing.assert_close(absolute, cloud[patches.index[b]])


def test_canonical_patches_do_not_depend_on_the_order_of_the_file() -> None:
    batch = batch_of(300)
    order = torch.randperm(300)
    shuffled = PointCloudBatch.pack([batch.xyz[order]], ["shuffled"])
    for voxel_size in (None, 0.3):
        sampler = PatchSampler(16, 8, voxel_size=voxel_size)
        assert torch.equal(sampler(batch).points, sampler(shuffled).points)
        assert torch.equal(sampler(batch).centres, sampler(shuffled).centres)


def test_file_order_starts_at_the_first_point() -> None:
    batch = batch_of(100)
    patches = PatchSampler(4, 8, canonical=False)(batch)
    torch.testing.assert_close(patches.centres[0, 0], patches.in_frame(batch.xyz[0], 0))


def test_scale_and_position_of_the_file_do_not_matter() -> None:
    small, large = batch_of(100, scale=1.0), batch_of(100, scale=1000.0)
    ours, theirs = PatchSampler(4, 8)(small), PatchSampler(4, 8)(large)
    torch.testing.assert_close(ours.points, theirs.points, atol=1e-5, rtol=1e-5)


def test_too_few_points_name_the_cloud_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"cloud1: 20 points.*at least 32"):
        PatchSampler(4, 32)(batch_of(100, 20))
    with pytest.raises(InputError, match=r"cloud0: \d+ points after the voxel filter of 100"):
        PatchSampler(4, 32, voxel_size=100)(batch_of(100))
    with pytest.raises(InputError, match="at least 30"):
        PatchSampler(30, 8, pad=True)(batch_of(20))


def test_padding_repeats_the_centre() -> None:
    patches = PatchSampler(4, 32, pad=True)(batch_of(20))
    assert patches.points.shape == (1, 4, 32, 3)
    assert torch.equal(patches.index[0, :, 20:], patches.index[0, :, :1].expand(-1, 12))
    assert sorted(patches.index[0, 0, :20].tolist()) == list(range(20))


def test_coincident_points_are_an_error() -> None:
    with pytest.raises(InputError, match="lonely: all points coincide"):
        PatchSampler(4, 4)(PointCloudBatch.pack([torch.ones(50, 3)], ["lonely"]))
