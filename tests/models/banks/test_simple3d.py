"""Simple3D against loops in numpy over its groups, its samples and its coreset."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from part_shapes import batch, bracket, bumped, plate
from scipy.spatial.distance import cdist
from torch import Tensor

from anomaly3d.errors import InputError
from anomaly3d.models.components.fpfh import fpfh
from anomaly3d.models.components.sampled_scoring import SampledScoring
from anomaly3d.models.simple3d import Simple3D
from anomaly3d.ops.grouping import interpolate
from anomaly3d.ops.sphere import centre_and_radius
from anomaly3d.ops.voxel import voxel_filter
from anomaly3d.types import PointCloudBatch

FEW = {"num_groups": 60, "group_size": 20, "smooth_samples": 50}


def fitted(clouds: PointCloudBatch, **settings) -> Simple3D:
    detector = Simple3D(**settings)
    detector.configure(["bracket", "plate"])
    detector.observe(clouds)
    detector.finish_pass()
    return detector.eval()


def farthest(points: np.ndarray, count: int) -> list[int]:
    """Indices of farthest points, from the first point on."""
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(cdist(points, points[chosen]).min(1).argmax()))
    return chosen


def by_inverse_squares(values: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of the three nearest; a target on a source has its value."""
    carried = []
    for point in target:
        distance = np.linalg.norm(source - point, axis=1)
        near = distance.argsort()[:3]
        on = distance[near[0]] == 0
        carried.append(values[near[0]] if on else np.average(values[near], weights=distance[near] ** -2.0))
    return np.array(carried)


def published_features(open3d: ModuleType, cloud: Tensor, groups: int, size: int) -> np.ndarray:
    """Groups around farthest points, and the mean of four histograms over each."""
    points = cloud.double().numpy()
    search = open3d.geometry.KDTreeSearchParamHybrid
    surface = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    surface.estimate_normals(search(10_000, 10))
    histogram = open3d.pipelines.registration.compute_fpfh_feature
    scales = [np.array(histogram(surface, search(1e6, k)).data.T) for k in (40, 80, 80, 120)]
    found = []
    for centre in farthest(points, groups):
        group = np.linalg.norm(points - points[centre], axis=1).argsort()[:size]
        found.append(np.concatenate([scale[group].mean(0) for scale in scales]))
    return np.array(found)


def test_features_of_paper_are_means_of_every_point_s_histograms_over_groups(open3d):
    cloud = bracket(700, 50)
    found = Simple3D(protocol="paper", num_groups=60, group_size=20).describe(cloud, "cloud")
    assert found.shape == (60, 132)
    np.testing.assert_allclose(found.numpy(), published_features(open3d, cloud, 60, 20), rtol=1e-4, atol=1e-3)


def test_a_cloud_of_fewer_points_than_groups_has_one_around_each_of_as_many_as_there_are(open3d):
    cloud = bracket(100, 0)
    found = Simple3D(protocol="paper").describe(cloud, "cloud")
    expected = published_features(open3d, cloud, 100, 100)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-3)
    detector = fitted(batch([cloud, plate(100, 1)], [0, 1]), protocol="paper")
    assert detector.score(batch([bracket(50, 2)])).point_scores.isfinite().all()


def test_features_of_strict_are_means_of_three_scales_over_the_nearest_key_points(open3d):
    cloud = bracket(1500, 50)
    keypoints = voxel_filter(cloud, 0.08 * centre_and_radius(cloud)[1])
    scales = [fpfh(keypoints, None, k).numpy() for k in (40, 80, 120)]
    near = cdist(keypoints.numpy(), keypoints.numpy()).argsort(1)[:, :8]
    expected = [np.concatenate([scale[row].mean(0) for scale in scales]) for row in near]
    found = Simple3D(voxel_size=0.08).describe(cloud, "cloud")
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-4, atol=1e-3)
    few = Simple3D(voxel_size=0.08, num_groups=10).describe(cloud, "cloud")
    assert len(torch.unique(few, dim=0)) == 10
    assert (few[:, None] == found).all(-1).any(1).all()


def test_the_coreset_of_paper_is_a_twentieth_from_the_first_feature_on(open3d):
    clouds = [bracket(300, 0), bracket(300, 1), bracket(300, 2), plate(300, 3)]
    detector = fitted(batch(clouds, [0, 0, 0, 1]), protocol="paper", **FEW)
    for bank, part in zip(detector.bank.split(detector.offsets.diff().tolist()), (clouds[:3], clouds[3:]), strict=True):
        rows = torch.cat([detector.describe(cloud - cloud.mean(0), "cloud") for cloud in part]).numpy()
        chosen = [0]
        while len(chosen) < 0.05 * len(rows):
            chosen.append(int(cdist(rows, rows[chosen]).min(1).argmax()))
        assert len(bank) == (9 if len(part) == 3 else 3)
        np.testing.assert_array_equal(bank.numpy(), rows[chosen])
    capped = fitted(batch(clouds, [0, 0, 0, 1]), protocol="paper", coreset_size=4, **FEW)
    assert capped.offsets.tolist() == [0, 4, 7]
    tenth = fitted(batch(clouds, [0, 0, 0, 1]), protocol="paper", coreset_share=0.1, **FEW)
    assert tenth.offsets.tolist() == [0, 18, 24]


def test_the_map_of_paper_is_carried_averaged_at_samples_and_carried_again(open3d):
    detector = fitted(batch([bracket(700, 0), plate(700, 1)], [0, 1]), protocol="paper", coreset_share=1.0, **FEW)
    cloud = batch([bumped(bracket(600, 2), (3.5, 1.0, 1.0))[0]])
    points = cloud.xyz.double().numpy()
    features = detector.describe(cloud.xyz, "cloud").numpy()
    distance = cdist(features, detector.bank[: detector.offsets[1]].numpy()).min(1)
    rough = by_inverse_squares(distance, points[farthest(points, 60)], points)
    samples = points[farthest(points, 50)]
    means = np.array([rough[np.linalg.norm(points - at, axis=1).argsort()[:12]].mean() for at in samples])
    expected = by_inverse_squares(means, samples, points)
    scored = detector.score(cloud)
    assert scored.category_logits is not None
    assert scored.category_logits.argmax() == 0
    np.testing.assert_allclose(scored.point_scores.numpy(), expected, rtol=1e-4)
    largest = np.sort(expected)[::-1]
    assert scored.object_scores.item() == pytest.approx(largest[:80].mean(), rel=1e-4)
    for share, score in ((1.0, expected.mean()), (0.0, largest[0]), (0.1, largest[:60].mean())):
        detector.scoring = SampledScoring(50, top_share=share)
        assert detector.score(cloud).object_scores.item() == pytest.approx(score, rel=1e-4)


def test_a_voxel_filter_under_paper_leaves_the_points_that_are_scored(open3d):
    settings = {"protocol": "paper", "top_share": 1.0, **FEW}
    clouds = batch([bracket(1500, 0), plate(1500, 1)], [0, 1])
    coarse, whole = fitted(clouds, voxel_size=0.4, **settings), Simple3D(**settings)
    whole.configure(["bracket", "plate"])
    whole.load_state_dict(coarse.state_dict())
    cloud = batch([bumped(bracket(1500, 2), (3.5, 1.0, 1.0))[0]])
    kept = voxel_filter(cloud.xyz, 0.4)
    assert len(kept) < 1000
    of_kept = whole.eval().score(PointCloudBatch.pack([kept], ["kept"]))
    scored = coarse.score(cloud)
    assert torch.equal(scored.object_scores, of_kept.object_scores)
    assert torch.equal(scored.point_scores, interpolate(of_kept.point_scores, kept, cloud.xyz))


def test_published_settings_of_paper():
    paper = Simple3D(protocol="paper")
    assert paper.fixed_settings() == {
        **{"protocol": "paper", "paper_version": 2, "neighbours": (40, 80, 80, 120), "normal_neighbours": 10},
        **{"num_groups": 4096, "group_size": 128, "voxel_size": None},
        **{"coreset_size": 1_000_000, "coreset_share": 0.05},
    }
    expected = {"samples": 1024, "neighbours": 12, "top_share": None, "top_points": 80}
    assert paper.scoring_settings() == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_groups", 0), ("group_size", 0), ("normal_neighbours", 2), ("coreset_share", 0), ("top_points", 0)],
)
def test_impossible_settings_are_named(setting: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{setting}={value}:"):
        Simple3D(protocol="paper", **{setting: value})  # pyright: ignore[reportArgumentType]
