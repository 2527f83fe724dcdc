from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from matplotlib import colormaps

from anomaly3d.report.coloured_clouds import save_coloured_ply


def load(path: Path) -> Any:
    return trimesh.load(path)


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    xyz, scores = rng.normal(size=(50, 3)).astype(np.float32), (100 * rng.normal(size=50)).astype(np.float32)
    path = save_coloured_ply(tmp_path / "predict" / "cloud.ply", torch.from_numpy(xyz), scores)
    cloud = load(path)
    np.testing.assert_array_equal(cloud.vertices.astype(np.float32), xyz)
    np.testing.assert_array_equal(cloud.metadata["_ply_raw"]["vertex"]["data"]["score"].ravel(), scores)
    low, high = np.percentile(scores, (2, 99.5))
    expected = colormaps["YlOrRd"]((scores - low) / (high - low), bytes=True)
    np.testing.assert_array_equal(cloud.colors, expected)
    assert list(path.parent.iterdir()) == [path]


def test_colours_follow_the_scores_and_constant_scores_are_drawn(tmp_path):
    xyz = np.random.default_rng(1).random((100, 3))
    green = load(save_coloured_ply(tmp_path / "a.ply", xyz, np.arange(100.0))).colors[:, 1].astype(int)
    assert (np.diff(green) <= 0).all()  # pale yellow to dark red
    assert green[0] - green[-1] > 200
    constant = load(save_coloured_ply(tmp_path / "b.ply", xyz, np.full(100, 3.0))).colors
    assert len(np.unique(constant, axis=0)) == 1


@pytest.mark.parametrize(
    ("xyz", "scores", "message"),
    [
        (np.zeros((3, 2)), np.zeros(3), "do not fit"),
        (np.zeros((3, 3)), np.zeros(2), "do not fit"),
        (np.zeros((0, 3)), np.zeros(0), "do not fit"),
        (np.zeros((2, 3)), np.array([0.0, np.nan]), "NaN or infinite"),
    ],
)
def test_bad_input_is_refused(tmp_path, xyz, scores, message):
    with pytest.raises(ValueError, match=message):
        save_coloured_ply(tmp_path / "cloud.ply", xyz, scores)
    assert not list(tmp_path.iterdir())
