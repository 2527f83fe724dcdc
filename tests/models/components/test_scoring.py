from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from anomaly3d.models.components.scoring import TokenScoring, min_max, smooth_along_index, smooth_in_space
from anomaly3d.types import PatchGroups, PointCloudBatch


def make_groups(cloud: Tensor, chosen: Tensor, size: int = 4) -> PatchGroups:
    """Patches around chosen points of one cloud, in a frame that is not the file's."""
    centroid, radius = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([3.0])
    framed = (cloud - centroid) / radius
    centres = framed[chosen]
    index = torch.cdist(centres, framed).topk(size, largest=False).indices
    return PatchGroups(
        centres=centres[None],
        points=(framed[index] - centres[:, None])[None],
        index=index[None],
        cloud=(framed,),
        centroid=centroid,
        radius=radius,
    )


@pytest.fixture
def cloud() -> Tensor:
    return torch.randn(80, 3, generator=torch.Generator().manual_seed(0))


def test_presets_are_the_documented_choices():
    strict, paper = TokenScoring.preset("strict"), TokenScoring.preset("paper")
    assert (strict.normalise, strict.smooth, strict.propagate) == ("none", "spatial", "inverse_distance")
    assert (paper.normalise, paper.smooth, paper.propagate) == ("instance", "token_index", "nearest")
    assert TokenScoring.preset() == strict == TokenScoring()
    assert (strict.sigma, paper.sigma, TokenScoring.preset("paper", smooth="spatial").sigma) == (1.0, 2.0, 1.0)


def test_each_choice_can_be_overridden_alone():
    assert TokenScoring.preset("paper", smooth="none") == TokenScoring("instance", "none", "nearest", sigma=1.0)
    assert TokenScoring.preset("strict", normalise="instance") == TokenScoring(normalise="instance")
    assert TokenScoring.preset("strict", propagate="nearest", kernel=5, sigma=1.0) == TokenScoring(
        propagate="nearest", kernel=5, sigma=1.0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalise": "instances"}, "normalise='instances'"),
        ({"smooth": "index"}, "smooth='index'"),
        ({"propagate": "linear"}, "propagate='linear'"),
        ({"smooth": "token_index", "kernel": 4}, "smooth_kernel=4: .*odd"),
        ({"kernel": 0}, "smooth_kernel=0: give a value from 1"),
        ({"sigma": 0.0}, r"smooth_sigma=0\.0: give a value from 1e-06"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TokenScoring(**settings)


def test_unknown_protocol_is_named():
    with pytest.raises(ValueError, match="strict, paper"):
        TokenScoring.preset("loose")  # pyright: ignore[reportArgumentType]


def test_min_max_per_cloud_and_constant_rows():
    errors = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])
    assert torch.equal(min_max(errors), torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("tokens", [3, 40])
def test_token_index_smoothing_is_scipys_gaussian(tokens):
    errors = torch.rand(2, tokens)
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 2.0) ** 2)
    expected = correlate1d(errors.double().numpy(), taps / taps.sum(), axis=1, mode="nearest")
    np.testing.assert_allclose(smooth_along_index(errors, 11, 2.0).numpy(), expected, atol=1e-6)


def test_spatial_smoothing_against_a_loop():
    centres, errors = torch.randn(2, 30, 3), torch.rand(2, 30)
    result = smooth_in_space(errors, centres, 7, 1.5)
    for b in range(2):
        xyz, e = centres[b].double().numpy(), errors[b].double().numpy()
        distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
        spacing = np.mean([np.sort(row)[1] for row in distance])
        for i in range(30):
            nearest = np.argsort(distance[i])[:7]
            weight = np.exp(-(distance[i, nearest] ** 2) / (2 * (1.5 * spacing) ** 2))
            assert result[b, i].item() == pytest.approx(weight @ e[nearest] / weight.sum(), abs=1e-5)


def test_spatial_smoothing_keeps_constants_ignores_units_and_survives_coincident_centres():
    centres, errors = torch.randn(1, 20, 3), torch.rand(1, 20)
    torch.testing.assert_close(smooth_in_space(torch.full((1, 20), 0.3), centres, 11, 2.0), torch.full((1, 20), 0.3))
    torch.testing.assert_close(
        smooth_in_space(errors, centres * 1000, 11, 2.0), smooth_in_space(errors, centres, 11, 2.0)
    )
    assert smooth_in_space(errors, torch.zeros(1, 20, 3), 11, 2.0).isfinite().all()
    assert torch.equal(smooth_in_space(errors[:, :1], centres[:, :1], 11, 2.0), errors[:, :1])
    assert torch.equal(smooth_in_space(errors, centres, 1, 2.0), errors)


def test_scores_are_in_file_order_and_the_object_score_is_their_maximum(cloud):
    chosen = torch.tensor([7, 30, 55])
    batch = PointCloudBatch.pack([cloud], ["a"])
    errors = torch.tensor([[1.0, 5.0, 2.0]])
    nearest = TokenScoring(smooth="none", propagate="nearest")(errors, make_groups(cloud, chosen), batch)
    owner = torch.cdist(cloud, cloud[chosen]).argmin(1)
    assert torch.equal(nearest.point_scores, errors[0, owner])
    assert nearest.object_scores.tolist() == [5.0]

    smooth = TokenScoring(smooth="none")(errors, make_groups(cloud, chosen), batch)
    distance = torch.cdist(cloud, cloud[chosen]).double()
    weight = 1 / distance.clamp(min=1e-12)
    torch.testing.assert_close(
        smooth.point_scores.double(), weight @ errors[0].double() / weight.sum(1), rtol=1e-4, atol=1e-4
    )
    assert smooth.object_scores.item() == smooth.point_scores.max().item()


def test_clouds_of_a_batch_do_not_see_each_other(cloud):
    one, two = cloud[:50], cloud[50:]
    groups = [make_groups(one, torch.arange(0, 50, 3)[:8]), make_groups(two, torch.arange(0, 30, 3)[:8])]
    both = PatchGroups(
        centres=torch.cat([g.centres for g in groups]),
        points=torch.cat([g.points for g in groups]),
        index=torch.cat([g.index for g in groups]),
        cloud=groups[0].cloud + groups[1].cloud,
        centroid=torch.cat([g.centroid for g in groups]),
        radius=torch.cat([g.radius for g in groups]),
    )
    errors = torch.rand(2, 8)
    scoring = TokenScoring(normalise="instance")
    joint = scoring(errors, both, PointCloudBatch.pack([one, two], ["a", "b"]))
    alone = [
        scoring(errors[b : b + 1], groups[b], PointCloudBatch.pack([xyz], ["a"])) for b, xyz in enumerate([one, two])
    ]
    assert torch.equal(joint.point_scores, torch.cat([a.point_scores for a in alone]))
    assert torch.equal(joint.object_scores, torch.cat([a.object_scores for a in alone]))


def test_order_of_tokens_matters_along_the_index_only(cloud):
    chosen = torch.arange(0, 80, 4)
    errors = torch.rand(1, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    batch = PointCloudBatch.pack([cloud], ["a"])
    one, other = make_groups(cloud, chosen), make_groups(cloud, chosen[order])
    strict, index = TokenScoring(), TokenScoring.preset(smooth="token_index")
    torch.testing.assert_close(
        strict(errors, one, batch).point_scores, strict(errors[:, order], other, batch).point_scores
    )
    changed = index(errors[:, order], other, batch).point_scores - index(errors, one, batch).point_scores
    assert changed.abs().max() > 0.05


def test_instance_normalisation_hides_the_size_of_the_error(cloud):
    groups, batch = make_groups(cloud, torch.arange(0, 80, 4)), PointCloudBatch.pack([cloud], ["a"])
    errors = torch.rand(1, 20)
    for scoring, factor in ((TokenScoring(normalise="instance"), 1), (TokenScoring(normalise="none"), 9)):
        small, large = (scoring(scale * errors, groups, batch).object_scores for scale in (1, 9))
        torch.testing.assert_close(large, factor * small)


def test_logits_travel_along_and_half_precision_errors_are_scored_in_float32(cloud):
    groups, batch = make_groups(cloud, torch.arange(0, 80, 4)), PointCloudBatch.pack([cloud], ["a"])
    logits = torch.rand(1, 3)
    prediction = TokenScoring()(torch.rand(1, 20, dtype=torch.bfloat16), groups, batch, logits)
    assert prediction.category_logits is logits
    assert prediction.point_scores.dtype == torch.float32


def test_the_preset_paper_is_its_three_steps_in_a_loop(cloud):
    chosen = torch.randperm(80, generator=torch.Generator().manual_seed(2))[:30]
    groups, errors = make_groups(cloud, chosen), torch.rand(30, generator=torch.Generator().manual_seed(3)) * 7 + 1
    found = TokenScoring.preset("paper")(errors[None], groups, PointCloudBatch.pack([cloud], ["a"]))
    e = errors.double().numpy()
    e = (e - e.min()) / (e.max() - e.min())
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 2.0) ** 2)
    smoothed = [sum(taps[j] * e[min(max(i + j - 5, 0), 29)] for j in range(11)) / taps.sum() for i in range(30)]
    points = [smoothed[np.argmin([np.linalg.norm(x - cloud[c].numpy()) for c in chosen])] for x in cloud.numpy()]
    np.testing.assert_allclose(found.point_scores.numpy(), points, atol=1e-5)
    assert found.object_scores.item() == pytest.approx(max(points), abs=1e-5)
