import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.testing import assert_close

from anomaly3d.metrics.functional import auroc, average_precision, ranking_metrics


def reference(scores: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    ranked = scores.double().numpy()  # exact for every type
    return float(roc_auc_score(target.numpy(), ranked)), float(average_precision_score(target.numpy(), ranked))


def assert_matches_sklearn(scores: torch.Tensor, target: torch.Tensor) -> None:
    got = ranking_metrics(scores, target)
    assert got.auroc.dtype == got.average_precision.dtype == torch.float64
    np.testing.assert_allclose([got.auroc.item(), got.average_precision.item()], reference(scores, target), rtol=1e-12)


def sample(count: int, positives: float, seed: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, generator=generator) < positives
    target[:2] = torch.tensor([True, False])
    scores = torch.randn(count, generator=generator, dtype=torch.float64) + target
    return scores.to(dtype), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positives", [0.001, 0.02, 0.5, 0.99])
def test_matches_sklearn_on_random_scores(dtype, positives):
    assert_matches_sklearn(*sample(5000, positives, seed=1, dtype=dtype))


@pytest.mark.parametrize("levels", [1, 2, 3, 17])
def test_matches_sklearn_on_tied_scores(levels):
    scores, target = sample(3000, 0.1, seed=2)
    assert_matches_sklearn((scores * levels).round().clamp(0, levels - 1), target)


@pytest.mark.parametrize(
    "scores",
    [
        [0.0, -0.0, 0.0, -0.0],  # two zeros, one rank
        [1e-45, 0.0, -1e-45, 2e-45],  # denormal
        [3.4e38, -3.4e38, 1.0, 1.0],
        [1.0, 1.0 + 2**-23, 1.0, 1.0 - 2**-24],  # neighbours in float32
        [5.0, 5.0, 5.0, 5.0],
        [-1.0, -2.0, -3.0, -4.0],
    ],
)
def test_matches_sklearn_on_extreme_values(scores):
    for target in ([1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1]):
        assert_matches_sklearn(torch.tensor(scores), torch.tensor(target))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([-1.0, 0.0, 0.5, 2.0]) | st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.booleans(),
        ),
        min_size=2,
        max_size=60,
    ).filter(lambda pairs: len({truth for _, truth in pairs}) == 2)
)
def test_matches_sklearn_on_any_scores(pairs):
    scores, target = zip(*pairs, strict=True)
    assert_matches_sklearn(torch.tensor(scores, dtype=torch.float32), torch.tensor(target))


def test_closed_forms():
    target = torch.tensor([0, 0, 0, 1, 1])
    perfect = ranking_metrics(torch.arange(5.0), target)
    assert (perfect.auroc, perfect.average_precision) == (1, 1)
    worst = ranking_metrics(-torch.arange(5.0), target)
    assert worst.auroc == 0
    assert_close(worst.average_precision.item(), (1 / 4 + 2 / 5) / 2)
    constant = ranking_metrics(torch.full((5,), 3.0), target)
    assert (constant.auroc, constant.average_precision.item()) == (0.5, pytest.approx(2 / 5))


def test_order_of_samples_changes_nothing():
    scores, target = sample(4000, 0.05, seed=3)
    shuffled = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert ranking_metrics(scores, target) == ranking_metrics(scores[shuffled], target[shuffled])


@pytest.mark.parametrize("transform", [lambda s: 1000 * s - 7, torch.exp, lambda s: s**3, lambda s: s / 1e6])
def test_increasing_transforms_change_nothing(transform):
    scores, target = sample(4000, 0.05, seed=4, dtype=torch.float64)
    assert ranking_metrics(transform(scores), target) == ranking_metrics(scores, target)


def test_scores_are_never_squashed():
    # A sigmoid in float32 makes 20, 30 and 40 one score.
    scores, target = torch.tensor([20.0, 40.0, 30.0, -200.0, -300.0]), torch.tensor([0, 1, 1, 1, 0])
    assert_matches_sklearn(scores, target)
    squashed = ranking_metrics(scores.sigmoid(), target)
    assert squashed.auroc != auroc(scores, target)


def test_swapping_classes_mirrors_the_auroc():
    scores, target = sample(3000, 0.1, seed=5)
    assert_close(auroc(-scores, ~target), auroc(scores, target))
    assert_close(auroc(scores, ~target), 1 - auroc(scores, target))


@pytest.mark.parametrize("target", [[], [0, 0, 0], [1, 1]])
def test_one_class_is_nan(target):
    metrics = ranking_metrics(torch.rand(len(target)), torch.tensor(target, dtype=torch.long))
    assert metrics.auroc.isnan()
    assert metrics.average_precision.isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("target", [[0, 1, 0, 1], [0, 0, 0, 0]])
def test_scores_without_rank_are_refused(bad, target):
    scores = torch.tensor([0.1, bad, 3.0, 2.0])
    with pytest.raises(ValueError, match="1 of 4 scores are NaN or infinite"):
        ranking_metrics(scores, torch.tensor(target))


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        (torch.rand(3), torch.tensor([0, 1]), "one length"),
        (torch.rand(2, 2), torch.ones(2, 2, dtype=torch.bool), "1-D"),
        (torch.rand(2), torch.tensor([0, 2]), "0 and 1 only"),
        (torch.rand(2), torch.tensor([0, -1]), "0 and 1 only"),
        (torch.rand(2), torch.tensor([0.0, 1.0]), "bool or integer"),
        (torch.tensor([1, 2]), torch.tensor([0, 1]), "floating point"),
    ],
)
def test_bad_arguments_are_refused(scores, target, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(scores, target)


def test_inputs_are_left_alone():
    scores, target = sample(100, 0.3, seed=6)
    before = scores.clone(), target.clone()
    average_precision(scores, target)
    assert torch.equal(scores, before[0])
    assert torch.equal(target, before[1])


def test_pair_counts_beyond_float32_and_int32_stay_exact():
    # 3e5 x 3e5 pairs overflow 32 bits; one swapped pair must still be seen.
    count = 300_000
    scores = torch.arange(2 * count, dtype=torch.float64)
    target = scores >= count
    target[count - 1], target[count] = True, False
    assert auroc(scores, target).item() == 1 - 1 / count**2
