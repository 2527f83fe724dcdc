"""Values against scikit-learn on scores that are binned by hand, and bounds against the scores themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_regions import naive_aupro
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score

from anomaly3d.metrics.binned import (
    binned_aupro,
    binned_auroc,
    binned_average_precision,
    binned_f1_max,
    precision_recall_f1,
    tied_bins,
)

TOLERANCE = 1e-12


def sample(seed: int, count: int = 400, levels: int = 0):
    rng = np.random.default_rng(seed)
    target = rng.random(count) < 0.2
    target[:2] = True, False
    scores = (rng.standard_normal(count) + target).astype(np.float32)
    return (np.round(scores * levels) / levels if levels else scores), target


def as_bins(scores, target, width):
    bins = tied_bins(torch.from_numpy(np.floor(scores / width).astype(np.float32)), torch.from_numpy(target))
    return bins.positives, bins.negatives


@pytest.mark.parametrize("levels", [0, 1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_a_bin_per_score_is_exact(seed, levels):
    scores, target = sample(seed, levels=levels)
    bins = tied_bins(torch.from_numpy(scores), torch.from_numpy(target))
    assert binned_auroc(bins.positives, bins.negatives).value.item() == pytest.approx(roc_auc_score(target, scores))
    precision = binned_average_precision(bins.positives, bins.negatives).value.item()
    assert precision == pytest.approx(average_precision_score(target, scores))


def test_values_are_those_of_the_binned_scores():
    scores, target = sample(7)
    positives, negatives = as_bins(scores, target, 0.3)
    binned = np.floor(scores / 0.3)
    assert binned_auroc(positives, negatives).value.item() == pytest.approx(roc_auc_score(target, binned))
    precision = binned_average_precision(positives, negatives).value.item()
    assert precision == pytest.approx(average_precision_score(target, binned))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 2)), min_size=2, max_size=40).filter(
        lambda rows: len({truth for _, truth, _ in rows}) == 2
    ),
    st.integers(1, 13),
)
def test_exact_values_lie_within_the_bounds(rows, width):
    """Scores with many ties, in bins of one score to all of them; positives in up to three regions."""
    scores, target, region = (np.array(column) for column in zip(*rows, strict=True))
    region = np.unique(region[target], return_inverse=True)[1]
    weight = 1 / np.bincount(region)[region]
    binned = tied_bins(torch.tensor(scores // width).float(), torch.tensor(target), torch.tensor(weight))
    regions = [scores[target][region == r] for r in range(region.max() + 1)]
    pairs = [
        (binned_auroc(binned.positives, binned.negatives), roc_auc_score(target, scores)),
        (binned_average_precision(binned.positives, binned.negatives), average_precision_score(target, scores)),
        (binned_aupro(binned.weight, binned.negatives), naive_aupro(regions, scores[~target])),
    ]
    for (value, lower, upper), exact in pairs:
        assert lower - TOLERANCE <= exact <= upper + TOLERANCE
        assert lower - TOLERANCE <= value <= upper + TOLERANCE
        if width == 1:
            assert value.item() == pytest.approx(exact)
    best = binned_f1_max(binned.positives, binned.negatives)
    every = [f1_score(target, scores >= threshold) for threshold in np.unique(scores)]
    assert best.value <= max(every) + TOLERANCE
    assert best.upper >= max(every) - TOLERANCE


def test_bounds_are_reached():
    """Four negatives and four positives in one bin: the best and the worst order there is."""
    bins = torch.tensor([0, 4]), torch.tensor([3, 4])
    auroc, precision = binned_auroc(*bins), binned_average_precision(*bins)
    target = np.array([0, 0, 0, *[1] * 4, *[0] * 4])
    assert auroc.lower.item() == pytest.approx(roc_auc_score(target, [0, 0, 0, *[1] * 4, *[2] * 4]))
    assert auroc.upper.item() == pytest.approx(roc_auc_score(target, [0, 0, 0, *[2] * 4, *[1] * 4]))
    assert precision.upper.item() == pytest.approx(average_precision_score(target, [0, 0, 0, *[2] * 4, *[1] * 4]))
    worst = average_precision_score(target, [0, 0, 0, 2, 3, 4, 5, *[6] * 4])
    assert worst - 0.02 < precision.lower.item() <= worst


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_equals_a_loop_over_thresholds(seed: int, limit: float):
    scores, target = sample(seed, levels=[0, 2, 6][seed])
    region = np.random.default_rng(seed).integers(0, 4, target.sum())
    bins = tied_bins(
        torch.from_numpy(scores), torch.from_numpy(target), torch.from_numpy(1 / np.bincount(region)[region])
    )
    regions = [scores[target][region == r] for r in range(4)]
    value = binned_aupro(bins.weight, bins.negatives, limit=limit).value.item()
    assert value == pytest.approx(naive_aupro(regions, scores[~target], limit), abs=1e-9)


def test_aupro_of_single_points_up_to_the_end_is_the_auroc():
    scores, target = sample(5)
    bins = tied_bins(torch.from_numpy(scores), torch.from_numpy(target))
    assert binned_aupro(bins.weight, bins.negatives, 1.0).value.item() == pytest.approx(roc_auc_score(target, scores))


def test_aupro_weighs_regions_not_points():
    # One large region found, one small one missed: overlap one half at every false positive rate but the last.
    scores = torch.tensor([9.0] * 50 + [0.0] + [1.0] * 20)
    target = torch.tensor([True] * 51 + [False] * 20)
    bins = tied_bins(scores, target, torch.tensor([1 / 50] * 50 + [1.0], dtype=torch.float64))
    assert binned_aupro(bins.weight, bins.negatives).value.item() == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(3))
def test_f1_max_is_the_largest_and_is_attained_at_its_threshold(seed):
    scores, target = sample(seed, levels=[0, 3, 1][seed])
    bins = tied_bins(torch.from_numpy(scores), torch.from_numpy(target))
    best = binned_f1_max(bins.positives, bins.negatives)
    every = [f1_score(target, scores >= threshold) for threshold in np.unique(scores)]
    assert best.value.item() == pytest.approx(max(every))
    assert f1_score(target, scores >= bins.scores[best.bin].item()) == pytest.approx(max(every))


def test_batches_are_computed_one_by_one():
    positives, negatives = torch.randint(0, 5, (4, 30)), torch.randint(0, 9, (4, 30))
    for function in (binned_auroc, binned_average_precision, binned_aupro, binned_f1_max):
        together = function(positives, negatives)
        for row in range(4):
            alone = function(positives[row], negatives[row])
            assert [v[row].item() for v in together] == pytest.approx([v.item() for v in alone])


@pytest.mark.parametrize("counts", [([0, 0], [3, 1]), ([2, 1], [0, 0]), ([0], [0])])
def test_one_class_is_nan(counts):
    bins = [torch.tensor(count) for count in counts]
    for function in (binned_auroc, binned_average_precision, binned_aupro):
        assert all(value.isnan() for value in function(bins[0], bins[1]))
    best = binned_f1_max(*bins)
    assert best.value.isnan()
    assert best.upper.isnan()


def test_no_scores_are_one_empty_bin():
    bins = tied_bins(torch.empty(0), torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.float64))
    assert binned_auroc(bins.positives, bins.negatives).value.isnan()


@pytest.mark.parametrize("threshold", [-9.0, 0.5, 1.5, 9.0])
def test_operating_point_equals_sklearn(threshold):
    scores, target = sample(3)
    alarm = scores >= threshold
    found = precision_recall_f1(int((alarm & target).sum()), int((alarm & ~target).sum()), int(target.sum()))
    expected = precision_recall_fscore_support(target, alarm, average="binary", zero_division=0)[:3]  # pyright: ignore
    if threshold == 9.0:  # nothing is called anomalous: there is no precision, and F1 is 0
        assert np.isnan(found[0])
        assert found[1:] == (0, 0)
    else:
        assert found == pytest.approx(expected)


def test_an_operating_point_needs_positives():
    assert np.isnan(precision_recall_f1(0, 3, 0)).all()
