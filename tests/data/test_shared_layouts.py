"""Development data in the public layouts: every cloud is read and every truth file matched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomaly3d.data.anomaly_shapenet import index_anomaly_shapenet
from anomaly3d.data.dataset import CloudReader
from anomaly3d.data.real3d_ad import index_real3d_ad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "index", "counts", "share"),
    [
        ("anomaly_shapenet_layout", index_anomaly_shapenet, (32, 80, 112), (0.009, 0.105)),
        ("real3d_ad_layout", index_real3d_ad, (12, 36, 36), (0.009, 0.105)),
        ("part_revisions", index_anomaly_shapenet, (80, 85, 35), (0.009, 0.17)),
    ],
)
def test_every_cloud(
    shared_data: Path, folder: str, index, counts: tuple[int, ...], share: tuple[float, float]
) -> None:
    records = index(shared_data / folder)
    train = sum(record.split == "train" for record in records)
    anomalous = sum(record.label for record in records)
    assert (train, len(records) - train - anomalous, anomalous) == counts
    read = CloudReader(strict_io=True)
    shares = []
    for record in records:
        cloud = read(record)
        assert cloud.mask is not None
        assert cloud.mask.shape == cloud.xyz.shape[:1]
        np.testing.assert_allclose(cloud.xyz.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
        if record.label:
            shares.append(cloud.mask.mean())
        else:
            assert not cloud.mask.any()
    assert share[0] <= round(min(shares), 3)
    assert max(shares) <= share[1]


def test_a_cut_scan_shares_its_source(shared_data: Path) -> None:
    records = index_real3d_ad(shared_data / "real3d_ad_layout", ("test",))
    assert len({record.source for record in records}) == len(records) // 2
