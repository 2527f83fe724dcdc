"""Errors of training clouds by place, and scores in units of them."""

from __future__ import annotations

import pytest
import torch
from test_placing import trained, turned, wedge

from anomaly3d.errors import InputError
from anomaly3d.models.components.expected import ExpectedErrors
from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PointCloudBatch


def observed(neighbours: int) -> tuple[ExpectedErrors, torch.Tensor, torch.Tensor]:
    """Three clouds of category 0 and one of category 2, of three; the places and errors of all."""
    generator = torch.Generator().manual_seed(0)
    places, errors = torch.rand(4, 20, 3, generator=generator), torch.rand(4, 20, generator=generator)
    expected = ExpectedErrors(neighbours)
    for b, category in enumerate((0, 0, 2, 0)):
        expected.observe([f"cloud{b}"], torch.tensor([category]), places[b : b + 1], errors[b : b + 1])
    expected.finish_pass(3)
    return expected, places, errors


@pytest.mark.parametrize("neighbours", [1, 7, 100])
def test_the_expected_error_is_the_mean_over_the_nearest_patches_of_the_category(neighbours: int) -> None:
    expected, places, errors = observed(neighbours)
    asked = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(1))
    found = expected(asked, torch.tensor([2, 0]))
    for b, clouds in enumerate(([2], [0, 1, 3])):
        patches = [(place, error) for c in clouds for place, error in zip(places[c], errors[c], strict=True)]
        for m, centre in enumerate(asked[b]):
            near = sorted(patches, key=lambda patch: (patch[0] - centre).norm().item())[:neighbours]
            mean = sum(error.item() for _, error in near) / len(near)
            assert found[b, m].item() == pytest.approx(mean, rel=1e-5)


def test_errors_that_are_not_finite_are_not_expected() -> None:
    """One of them would hide the defects around its place."""
    expected, places = ExpectedErrors(1), torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0))
    expected.observe(["a"], torch.tensor([0]), places, torch.tensor([[1.0, torch.inf, 2.0, torch.nan]]))
    expected.finish_pass(1)
    assert expected.rows is not None
    assert expected.rows[:, 3].tolist() == [1.0, 2.0]


def test_nothing_is_expected_where_nothing_was_seen() -> None:
    expected, places, _ = observed(3)
    assert expected(places[:1], torch.tensor([1])).isnan().all()
    assert ExpectedErrors()(places[:1], torch.tensor([0])).isnan().all()


def test_a_pass_replaces_the_one_before_but_for_categories_that_it_lacks() -> None:
    expected, places, errors = observed(1)
    normal = torch.arange(20)[None] % 2 == 0
    expected.observe(["cloud9"], torch.tensor([0]), places[:1], errors[:1] + 5, normal)
    expected.finish_pass(3)
    found = expected(places[:1], torch.tensor([0]))[0]
    torch.testing.assert_close(found[::2], errors[0, ::2] + 5)  # the nearest normal patch of an odd one is another
    assert (found > 5).all()
    torch.testing.assert_close(expected(places[2:3], torch.tensor([2])), errors[2:3])
    expected.finish_pass(3)  # a pass that saw nothing
    torch.testing.assert_close(expected(places[2:3], torch.tensor([2])), errors[2:3])


def test_a_checkpoint_carries_them() -> None:
    expected, places, _ = observed(3)
    fresh = ExpectedErrors(3)
    fresh.load_state_dict(expected.state_dict())
    assert torch.equal(fresh(places[:1], torch.tensor([0])), expected(places[:1], torch.tensor([0])))


@pytest.mark.usefixtures("open3d")
def test_relative_scores_are_errors_in_units_of_those_of_the_training_clouds() -> None:
    settings = {"smooth": "none", "propagate": "nearest", "relative": True}
    model = trained("sedir", **settings)
    assert isinstance(model, SeDiR)
    assert model.expected is not None
    cloud = PointCloudBatch.pack([turned(wedge(2500, 5), 1)], ["a"])
    model.eval()
    alone = model.score(cloud).object_scores  # nothing is expected yet: the error itself
    model.relative = False
    assert torch.equal(model.score(cloud).object_scores, alone)
    model.train().finish_pass()
    absolute = model.eval().score(cloud).point_scores
    model.relative = True
    assert model.expected.rows is not None
    assert model.expected.offsets is not None
    assert model.expected.offsets.tolist() == [0, 32, 64]  # a cloud of 32 patches each
    model.expected.rows[:32, 3] = 2.0  # of the category that is predicted
    torch.testing.assert_close(model.score(cloud).point_scores, absolute / 2)


def test_relative_needs_templates() -> None:
    with pytest.raises(InputError, match=r"relative: .* set register to true"):
        SeDiR(backbone_size="tiny", backbone_weights="random", relative=True)
