"""What `protocol: paper` takes from Real3D-AD's code, against loops that are written anew here."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from part_shapes import batch, bracket, bumped
from scipy.spatial.distance import cdist

from anomaly3d.errors import InputError
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.btf import BTF
from anomaly3d.models.components.patches import Frame
from anomaly3d.models.components.point_features import PointFeatures, every
from anomaly3d.models.components.registration import Template
from anomaly3d.models.components.seen import Seen
from anomaly3d.models.m3dm import M3DM
from anomaly3d.models.patchcore import PatchCore
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.reg3d_ad import Reg3DAD

SMALL = {"num_groups": 12, "group_size": 8, "backbone_size": "tiny", "backbone_weights": "random"}
Bank = TypeVar("Bank", bound=BankDetector)
TOKENS = {
    "patchcore-pointmae": partial(PatchCorePointMAE, register=False, backbone_blocks=[1, 2], **SMALL),
    "m3dm": partial(M3DM, backbone_blocks=[1, 2], **SMALL),
}


def fit(detector: Bank, clouds: list[torch.Tensor]) -> Bank:
    detector.configure(["bracket"])
    detector.observe(batch(clouds, [0] * len(clouds)))
    detector.finish_pass()
    return detector.eval()


def centred(cloud: torch.Tensor) -> np.ndarray:
    return (cloud - cloud.mean(0)).double().numpy()


def histograms(open3d, points: np.ndarray) -> np.ndarray:
    """Of all points: normals of 30 within 1, histograms of 100 within 2.5."""
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamHybrid(1.0, 30))
    reach = open3d.geometry.KDTreeSearchParamHybrid(2.5, 100)
    return open3d.pipelines.registration.compute_fpfh_feature(cloud, reach).data.T


@pytest.mark.parametrize("feature", ["raw", "fpfh"])
def test_btf_scores_every_500th_point_and_gives_the_others_the_nearest_one_s(open3d, feature):
    train, test = [bracket(1290, 0), bracket(999, 1)], bumped(bracket(1990, 2), (3.5, 1.0, 1.0))[0]
    detector = fit(BTF(feature=feature, protocol="paper"), train)
    found = detector.score(batch([test]))

    points = [centred(cloud) for cloud in (*train, test)]
    *bank, query = points if feature == "raw" else [histograms(open3d, cloud) for cloud in points]
    # 12 and 9 rows; 0, 500 and 1000 of the test cloud: what is left over at its end has none.
    rows = np.concatenate([[features[100 * i] for i in range(len(features) // 100)] for features in bank])
    assert detector.bank.shape == rows.shape == (21, 3 if feature == "raw" else 33)
    at = [0, 500, 1000]
    distance = cdist(query[at], rows)
    near = cdist(points[2], points[2][at]).argmin(1)
    np.testing.assert_allclose(found.point_scores.numpy(), distance.min(1)[near], rtol=1e-3, atol=1e-4)

    worst = distance.min(1).argmax()
    around = cdist(rows, rows)[distance[worst].argmin()].argsort()[1:3]
    root = rows.shape[1] ** 0.5
    others = sum(np.exp(np.linalg.norm(query[at][worst] - rows[i]) / root) for i in around)
    weight = 1 - np.exp(distance[worst].min() / root) / others
    assert found.object_scores[0].item() == pytest.approx(weight * distance[worst].min(), rel=1e-3)


def test_strides_are_settings_and_strict_takes_every_key_point():
    cloud = bracket(1990, 0) - bracket(1990, 0).mean(0)
    detector = BTF(feature="raw", protocol="paper", bank_stride=7, test_stride=3)
    torch.testing.assert_close(detector.describe(cloud, "a"), cloud[: 7 * 284 : 7])
    assert detector.fixed_settings()["bank_stride"] == 7
    assert detector.scoring_settings()["test_stride"] == 3
    strict = BTF(feature="raw")
    assert (strict.bank_stride, strict.test_stride, strict.features.sampling) == (1, 1, "voxel")
    for name in ("bank_stride", "test_stride"):
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(InputError, match=name):
            BTF(**wrong)


def test_every_takes_as_many_rows_as_fit_and_at_least_one():
    for count in range(1, 25):
        rows = torch.arange(count)[:, None]
        for stride in (1, 2, 5, 30):
            published = [stride * i for i in range(int(count / stride))]
            assert every(stride, rows)[:, 0].tolist() == (published or [0])


def test_patchcore_has_a_feature_at_every_point(open3d):
    train, test = [bracket(700, 0), bracket(700, 1)], bumped(bracket(600, 2), (3.5, 1.0, 1.0))[0]
    detector = fit(PatchCore(protocol="paper", hypotheses=2000), train)
    assert detector.bank.shape == (1400, 33)  # fewer than a coreset keeps
    cloud = batch([test])
    found = detector.score(cloud)
    placed = detector.placed(cloud.xyz).xyz
    expected = cdist(histograms(open3d, placed.double().numpy()), detector.bank.numpy()).min(1)
    np.testing.assert_allclose(found.point_scores.numpy(), expected, rtol=1e-3, atol=1e-2)
    assert found.object_scores[0] == found.point_scores.max()


def test_patchcore_of_fpfh_and_raw_averages_the_maps_of_two_banks(open3d):
    train, test = [bracket(700, 0), bracket(700, 1)], bumped(bracket(600, 2), (3.5, 1.0, 1.0))[0]
    detector = fit(PatchCore(feature="fpfh_raw", protocol="paper", hypotheses=2000), train)
    assert (detector.bank.shape, detector.coordinates.shape) == ((1400, 33), (1400, 3))
    cloud = batch([test])
    found = detector.score(cloud)
    placed = detector.placed(cloud.xyz).xyz.double().numpy()
    maps = []
    for query, bank in ((placed, detector.coordinates), (histograms(open3d, placed), detector.bank)):
        among = np.sort(cdist(bank.numpy(), bank.numpy()), axis=1)[:, 1] ** 2
        distance = cdist(query, bank.numpy()).min(1) ** 2
        maps.append((distance - among.min()) / (among.max() - among.min()))
    assert min(one.std() for one in maps) > 0.01  # neither is lost in the mean
    np.testing.assert_allclose(found.point_scores.numpy(), (maps[0] + maps[1]) / 2, rtol=1e-3, atol=1e-3)
    assert maps[0].argmax() != maps[1].argmax()
    assert found.object_scores[0].item() == pytest.approx((maps[0].max() + maps[1].max()) / 2, rel=1e-3)

    restored = PatchCore(feature="fpfh_raw", protocol="paper", hypotheses=2000)
    restored.configure(["bracket"])
    restored.load_state_dict(detector.state_dict())
    assert torch.equal(restored.eval().score(cloud).point_scores, found.point_scores)


def test_two_banks_are_of_paper_alone_and_a_weight_joins_them():
    two = PatchCore(feature="fpfh_raw", protocol="paper")
    assert two.two_banks
    assert two.fixed_settings()["feature"] == "fpfh_raw"
    assert "raw_weight" not in two.fixed_settings()
    joined = PatchCore(feature="fpfh_raw", protocol="paper", raw_weight=11**0.5)
    assert (joined.two_banks, joined.fixed_settings()["raw_weight"]) == (False, 11**0.5)
    assert not PatchCore(feature="fpfh_raw").two_banks
    assert not PatchCore(feature="fpfh", protocol="paper").two_banks


@pytest.mark.parametrize("method", TOKENS)
def test_tokens_are_of_centred_clouds_in_the_unit_of_the_file(method):
    detector, cloud = TOKENS[method](protocol="paper").eval(), 3 + bracket(200, 0)
    points = centred(cloud)
    chosen = [0]
    while len(chosen) < 12:
        chosen.append(int(cdist(points, points[chosen]).min(1).argmax()))
    near = cdist(points[chosen], points).argsort(1)[:, :8]
    patches = torch.from_numpy(points[near] - points[chosen][:, None]).float()
    blocks = detector.backbone(patches[None], torch.from_numpy(points[chosen]).float()[None], (1, 2))
    expected = torch.cat(blocks, dim=-1)[0]
    torch.testing.assert_close(detector.tokens(cloud, "a")[1], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", TOKENS)
def test_the_unit_of_the_file_changes_tokens_under_paper_alone(method):
    cloud = bracket(200, 0)
    for protocol, same in (("strict", True), ("paper", False)):
        detector = TOKENS[method](protocol=protocol).eval()
        one, other = (detector.tokens(unit * cloud, "a")[1] for unit in (1, 16))
        assert torch.equal(one, other) == same
        assert torch.allclose(one, other, rtol=0.1, atol=0.1) == same


@pytest.mark.parametrize("method", [PatchCorePointMAE, Reg3DAD])
def test_registered_clouds_are_centred_about_their_template_under_paper(method):
    whole, part = bracket(300, 0), bracket(300, 0)[:200] + 0.5
    detector = method(protocol="paper", **SMALL).eval()
    template, frame = Template(whole), Frame(whole.double().mean(0).float(), torch.tensor(1.0))
    expected = detector.tokens(part, "a", frame)[1]
    groups, tokens = detector.seen_tokens(part, "a", template)
    assert torch.equal(tokens, expected)
    assert torch.equal(next(detector.placed_tokens([Seen("a", 0, part)], template)), expected)
    assert groups.radius.item() == 1
    strict = method(**SMALL).eval()
    assert torch.equal(next(strict.placed_tokens([Seen("a", 0, part)], template)), strict.tokens(part, "a")[1])


def test_scores_of_m3dm_are_the_nearest_patch_s_under_paper():
    detector = TOKENS["m3dm"](protocol="paper")
    assert detector.scoring.propagate == "nearest"
    assert TOKENS["m3dm"]().scoring.propagate == "inverse_distance"
    assert TOKENS["m3dm"](protocol="paper", propagate="inverse_distance").scoring.propagate == "inverse_distance"
    fit(detector, [bracket(300, 0)])
    cloud = batch([bracket(250, 1)])
    groups, tokens = detector.tokens(cloud.xyz, "a")
    errors = cdist(tokens.numpy(), detector.bank.numpy()).min(1)
    near = cdist(cloud.xyz.numpy(), (groups.centres[0] + groups.centroid[0]).numpy())
    found = detector.score(cloud).point_scores.numpy()
    np.testing.assert_allclose(found, errors[near.argmin(1)], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [BTF, PatchCore])
def test_other_neighbours_than_the_published_are_warned_of_under_paper(method):
    with pytest.warns(UserWarning, match="feature_neighbours=20 under protocol paper, where 100 are published"):
        method(protocol="paper", feature_neighbours=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(protocol="paper")
        method(feature_neighbours=20)
        BTF(feature="raw", protocol="paper", feature_neighbours=20)


def test_coordinates_have_no_lengths_under_paper():
    """But histograms have: files in another unit than that of the radii are refused."""
    cloud = bracket(900, 31) / 1000
    assert BTF(protocol="paper", feature="raw").describe(cloud, "a").shape == (9, 3)
    with pytest.raises(InputError, match=r"voxel_size: an edge of 0.5 leaves 1 of 900 points"):
        PointFeatures.preset("fpfh", "paper", None, 2.0, 5.0).keypoints(cloud, 1.0)
