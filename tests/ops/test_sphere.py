from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly3d.ops.sphere import centre_and_radius, radius_about_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_about_the_mean_and_reaches_the_farthest_point(dtype: torch.dtype) -> None:
    xyz = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=dtype) * torch.tensor([5.0, 2.0, 1.0])
    points = xyz.double().numpy()
    centre, radius = centre_and_radius(xyz)
    assert centre.dtype == dtype
    np.testing.assert_allclose(centre.numpy(), points.mean(0), atol=1e-6)
    expected = np.linalg.norm(points - points.mean(0), axis=1).max()
    assert radius == pytest.approx(expected, rel=1e-6)
    assert radius_about_mean(xyz) == pytest.approx(expected, rel=1e-6)


def test_a_centre_far_from_the_origin_keeps_its_digits() -> None:
    """A million float32 numbers of one sign that are added as float32 lose what float64 keeps."""
    xyz = torch.full((1_000_000, 3), 1000.1)
    centre, radius = centre_and_radius(xyz)
    assert torch.equal(centre, xyz[0])
    assert radius == 0
