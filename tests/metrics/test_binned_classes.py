import doctest
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.multiprocessing.spawn import spawn
from torchmetrics import MetricCollection

from anomaly3d.errors import InputError
from anomaly3d.metrics import binned_classes
from anomaly3d.metrics.binned import tied_bins
from anomaly3d.metrics.binned_classes import (
    STATE_BYTES,
    BinnedAUPRO,
    BinnedAUROC,
    BinnedAveragePrecision,
    BinnedF1Max,
    ScoreHistograms,
    bins_per_category,
)
from anomaly3d.metrics.grid import CELLS

REFERENCE = {BinnedAUROC: roc_auc_score, BinnedAveragePrecision: average_precision_score}
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
denormals = st.integers(-9, 9).map(lambda k: k * 2.0**-149)


def assert_bounded(metric_class, parts, widest=1.0, **kwargs):
    """Bounds of the parts, given one after the other, hold the exact value; returns their distance."""
    metric = metric_class(**kwargs)
    for scores, target in parts:
        metric.update(scores, target)
    value, lower, upper = (v.item() for v in metric.compute())
    scores, target = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    exact = float(REFERENCE[metric_class](target, scores))
    assert lower - 1e-11 <= exact <= upper + 1e-11
    assert lower - 1e-11 <= value <= upper + 1e-11
    assert upper - lower <= widest
    return upper - lower


@pytest.mark.parametrize("metric_class", REFERENCE)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(floats | st.floats(0.5, 0.625, width=32) | denormals, st.booleans()),
            min_size=1,
            max_size=30,
        ),
        min_size=1,
        max_size=5,
    ).filter(lambda parts: len({truth for part in parts for _, truth in part}) == 2)
)
def test_bounds_hold_for_any_scores_in_any_updates(metric_class, parts):
    columns = [zip(*part, strict=True) for part in parts]
    assert_bounded(
        metric_class, [(torch.tensor(s, dtype=torch.float32), torch.tensor(t)) for s, t in columns], bins=CELLS + 64
    )


def shifted(count: int, seed: int, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, generator=generator) < 0.05
    target[:2] = torch.tensor([True, False])
    return offset + scale * (torch.randn(count, generator=generator) + target), target


@pytest.mark.parametrize("metric_class", REFERENCE)
@pytest.mark.parametrize(
    ("scale", "offset", "widest"),
    [
        (1.0, 0.0, 1e-3),
        (1e-3, 1.0, 1e-3),  # close together, far from zero
        (1e30, 0.0, 1e-3),
        (1e-38, 0.0, 1e-3),  # many denormals
        (1e-6, 1.0, 1.0),  # a few floats only: wide bounds, but they hold
    ],
)
def test_scores_of_any_scale(metric_class, scale, offset, widest):
    parts = [shifted(40_000, seed, scale, offset) for seed in range(5)]
    assert_bounded(metric_class, parts, widest)


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_equal_scores_have_wide_bounds_that_hold(metric_class):
    target = torch.arange(1000) % 4 == 0
    assert assert_bounded(metric_class, [(torch.full((1000,), 0.3), target)]) > 0.4


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_later_scores_may_lie_elsewhere(metric_class):
    # The grid is fine around 1; what comes then lies in cells that nothing has been in, and in one that is coarse.
    first = torch.linspace(1, 1.03, 5000), torch.arange(5000) % 3 == 0
    parts = [first, shifted(20_000, 1, 100.0), shifted(20_000, 2, 0.5)]
    assert_bounded(metric_class, parts, 5e-3)


@pytest.mark.parametrize("metric_class", REFERENCE)
@pytest.mark.parametrize("count", [2, 10**6])
def test_numbers_of_points(metric_class, count):
    assert_bounded(metric_class, [shifted(count, 3)], 1e-3)


@pytest.mark.slow
def test_a_hundred_million_points_are_counted_one_by_one():
    """A hundred times the same million has its AUROC and AP, which scikit-learn knows; float32 would stop counting."""
    scores, target = shifted(10**6, 5)
    metrics = {metric_class: metric_class() for metric_class in REFERENCE}
    for metric_class, metric in metrics.items():
        for _ in range(100):
            metric.update(scores, target)
        value, lower, upper = (v.item() for v in metric.compute())
        exact = float(REFERENCE[metric_class](target.numpy(), scores.numpy()))
        assert lower - 1e-11 <= exact <= upper + 1e-11
        assert lower <= value <= upper
        assert upper - lower <= 1e-3


@pytest.mark.parametrize("metric_class", REFERENCE)
@pytest.mark.parametrize("label", [0, 1])
def test_a_single_point_has_no_ranking(metric_class, label):
    metric = metric_class()
    metric.update(torch.tensor([0.3]), torch.tensor([label]))
    assert all(torch.isnan(v) for v in metric.compute())


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_bfloat16_is_counted_as_it_is(metric_class):
    scores, target = shifted(5000, 4)
    low, full = metric_class(), metric_class()
    low.update(scores.bfloat16(), target)
    full.update(scores.bfloat16().float(), target)
    assert low.compute() == full.compute()


def test_scores_are_never_squashed():
    metric = BinnedAUROC()  # a sigmoid in float32 makes 20, 30 and 40 one score
    metric.update(torch.tensor([20.0, 40.0, 30.0, -200.0, -300.0]), torch.tensor([0, 1, 1, 1, 0]))
    assert metric.compute().value == pytest.approx(5 / 6)


def test_order_within_an_update_changes_nothing():
    scores, target = shifted(20_000, 5)
    order = torch.randperm(len(scores))
    one, other = BinnedAveragePrecision(), BinnedAveragePrecision()
    one.update(scores, target)
    other.update(scores[order], target[order])
    assert one.compute() == other.compute()


def test_categories_are_apart():
    parts = [shifted(3000, 6), shifted(3000, 7, 10.0)]
    both = BinnedAUROC(categories=2)
    for category in (0, 1, 0):
        both.update(*parts[category], category=category)
    for category, repeats in ((0, 2), (1, 1)):
        alone = BinnedAUROC(bins=both.bins)
        for _ in range(repeats):
            alone.update(*parts[category])
        assert both.compute().value[category] == alone.compute().value


def differently_ranged() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Updates whose scores lie apart, far apart, and over each other, the last in cells cut by the others."""
    ranges = [(1.0, 0.0), (0.1, 2.0), (300.0, -1.0), (1e-3, 1.0), (2.0, 0.5)]
    return [shifted(4000, 20 + seed, *of) for seed, of in enumerate(ranges)]


def assert_encloses(bounded, metric_class, parts, widest=5e-3):
    scores, target = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    exact = float(REFERENCE[metric_class](target, scores))
    value, lower, upper = (v.item() for v in bounded)
    assert lower - 1e-11 <= exact <= upper + 1e-11
    assert lower - 1e-11 <= value <= upper + 1e-11
    assert upper - lower <= widest


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_forward_counts_as_update_does_and_returns_the_batch(metric_class):
    metric, parts = metric_class(), differently_ranged()
    for index, part in enumerate(parts):
        batch_value = metric(*part)
        assert_encloses(metric.compute(), metric_class, parts[: index + 1])
        assert_encloses(batch_value, metric_class, [part])
    metric.update(*parts[0])
    assert_encloses(metric.compute(), metric_class, [*parts, parts[0]])


@pytest.mark.parametrize("metric_class", REFERENCE)
@pytest.mark.parametrize("as_dict", [True, False])
def test_merged_states_are_those_of_all_parts(metric_class, as_dict):
    parts = differently_ranged()
    merged, other = metric_class(), metric_class()
    for part in parts[:2]:
        merged.update(*part)
    for part in parts[2:]:
        other.update(*part)
    alone, kept = merged.compute(), {name: state.clone() for name, state in other.metric_state.items()}
    merged.merge_state(other.metric_state if as_dict else other)
    assert merged.compute() != alone
    assert_encloses(merged.compute(), metric_class, parts)
    assert all(torch.equal(state, kept[name]) for name, state in other.metric_state.items())
    merged.merge_state(metric_class())
    assert_encloses(merged.compute(), metric_class, parts)


def test_merged_histograms_are_counts_on_the_common_grid():
    parts = differently_ranged()
    one, other = (ScoreHistograms(categories=2, bins=CELLS + 3000) for _ in range(2))
    for metric, chosen in ((one, parts[:3]), (other, parts[3:])):
        for scores, target in chosen:
            metric(scores, target, torch.full((int(target.sum()),), 0.5), category=1)
    one.merge_state(other)
    positives, negatives, overlap, grids = one.compute()
    scores, target = (torch.cat(column) for column in zip(*parts, strict=True))
    assert grids[1].bins <= one.bins
    for counts, expected in ((positives, target), (negatives, ~target), (2 * overlap, target)):
        assert torch.equal(counts[1].long(), torch.bincount(grids[1].index(scores[expected]), minlength=one.bins))
        assert not counts[0].any()


def test_histograms_of_another_shape_are_not_merged():
    for other in (ScoreHistograms(categories=2), ScoreHistograms(bins=CELLS)):
        with pytest.raises(InputError, match="positives: merge histograms of as many categories and bins"):
            ScoreHistograms().merge_state(other)


@pytest.mark.parametrize("compute_groups", [True, False])
def test_a_collection_may_be_updated_and_called_in_turn(compute_groups):
    parts = differently_ranged()
    names = {metric_class.__name__: metric_class for metric_class in REFERENCE}
    collection = MetricCollection([metric_class() for metric_class in REFERENCE], compute_groups=compute_groups)
    for index, part in enumerate(parts):
        if index % 2:
            for name, batch_value in collection(*part).items():
                assert_encloses(batch_value, names[name], [part])
        else:
            collection.update(*part)
        for name, bounded in collection.compute().items():
            assert_encloses(bounded, names[name], parts[: index + 1])


def test_aupro_by_forward_and_merge():
    scores, target = (torch.cat(column) for column in zip(*differently_ranged(), strict=True))
    weight = torch.full((int(target.sum()),), 1 / 500, dtype=torch.float64)
    whole, called, merged = (BinnedAUPRO() for _ in range(3))
    whole.update(scores, target, weight)
    for part in differently_ranged():
        mine = weight[: int(part[1].sum())]
        called(*part, mine)
        other = BinnedAUPRO()
        other.update(*part, mine)
        merged.merge_state(other)
    bins = tied_bins(scores, target, weight)
    exact = binned_classes.binned_aupro(bins.weight, bins.negatives).value
    for metric in (whole, called, merged):
        value, lower, upper = metric.compute()
        assert lower - 1e-11 <= exact <= upper + 1e-11
        assert lower <= value <= upper
        assert upper - lower < 5e-3


@pytest.mark.parametrize("metric_class", [*REFERENCE, BinnedAUPRO])
def test_one_class_is_nan_and_reset_forgets(metric_class):
    metric = metric_class()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 0]), torch.empty(0))
    assert all(value.isnan() for value in metric.compute())
    metric.update(torch.tensor([3.0]), torch.tensor([1]), torch.ones(1))
    assert metric.compute().value == 1
    metric.reset()
    assert metric.compute().value.isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_without_rank_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        BinnedAUROC().update(torch.tensor([1.0, bad]), torch.tensor([0, 1]))


@pytest.mark.parametrize("categories", [1, 12, 40, 100])
def test_state_stays_within_its_budget(categories):
    metric = ScoreHistograms(categories)
    states = [getattr(metric, name) for name in metric._defaults]
    assert sum(state.numel() * state.element_size() for state in states) <= STATE_BYTES


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="too many"):
        bins_per_category(10**6)
    with pytest.raises(InputError, match="bins=100"):
        BinnedAUROC(bins=100)


def test_updates_that_would_corrupt_the_counts_are_refused():
    metric, scores, target = BinnedAUPRO(categories=2), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1])
    for overlap in (None, torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="overlap"):
            metric.update(scores, target, overlap)
    for category in (-1, 2):
        with pytest.raises(ValueError, match="category"):
            metric.update(scores, target, torch.ones(2), category)
    assert not metric.positives.any()
    assert not metric.negatives.any()
    for limit in (0, -1, 2):
        with pytest.raises(InputError, match="limit"):
            BinnedAUPRO(limit=limit)


@pytest.mark.parametrize("seed", range(4))
def test_f1_max_is_attained_and_nothing_exceeds_its_bound(seed):
    scores, target = shifted(5000, seed)
    metric = BinnedF1Max()
    for part in (slice(2000), slice(2000, None)):
        metric.update(scores[part], target[part])
    exact = tied_bins(scores, target)
    best = binned_classes.binned_f1_max(exact.positives, exact.negatives).value
    value, _, upper = metric.compute()
    assert value - 1e-12 <= best <= upper + 1e-12
    assert upper - value < 5e-3


def test_docstring_examples():
    outcome = doctest.testmod(binned_classes)
    assert outcome.attempted == 17
    assert outcome.failed == 0


def ranks_parts() -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The second process sees other ranges, some of them overlapping; nothing in the last category."""
    return [[shifted(20_000, 8), shifted(5000, 9, 0.1, 2.0)], [shifted(10_000, 10, 3.0, -1.0)]]


def worker(rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    metric = ScoreHistograms(categories=3, bins=CELLS + 20_000, compute_with_cache=False)
    for scores, target in ranks_parts()[rank]:
        metric.update(scores, target, torch.ones(int(target.sum())), category=1)
    if rank == 0:
        metric.update(*shifted(1000, 11), category=2)
    before = [getattr(metric, name).clone() for name in metric._defaults]
    first, second = metric.compute(), metric.compute()
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    assert all(torch.equal(getattr(metric, n), b) for n, b in zip(metric._defaults, before, strict=True))
    Path(out, f"{rank}.pickle").write_bytes(pickle.dumps((first[:3], [grid.level for grid in first.grids])))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_add_up_on_one_grid(tmp_path):
    spawn(worker, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    results = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for one, other in zip(results[0][0] + tuple(results[0][1]), results[1][0] + tuple(results[1][1]), strict=True):
        assert torch.equal(one, other)
    (positives, negatives, overlap), levels = results[0]
    grid = binned_classes.Grid(levels[1])
    scores, target = (torch.cat(c) for c in zip(*(part for rank in ranks_parts() for part in rank), strict=True))
    for counts, chosen in ((positives, target), (negatives, ~target), (overlap, target)):
        expected = torch.bincount(grid.index(scores[chosen]), minlength=counts.shape[1])
        assert torch.equal(counts[1].long(), expected)
    assert positives[0].sum() == negatives[0].sum() == 0
    assert int(positives[2].sum() + negatives[2].sum()) == 1000
    value, lower, upper = binned_classes.binned_auroc(positives[1], negatives[1])
    assert lower <= roc_auc_score(target.numpy(), scores.numpy()) <= upper
    assert upper - lower < 1e-3
    assert np.isfinite(value.item())


def test_a_stray_point_of_the_first_cloud_does_not_make_later_ones_coarse():
    generator = torch.Generator().manual_seed(0)
    first = torch.cat([0.01 + 0.01 * torch.rand(19_999, generator=generator), torch.tensor([0.995])])
    clouds = [(first, torch.zeros(20_000, dtype=torch.bool))]
    for _ in range(20):
        target = torch.rand(20_000, generator=generator) < 0.05
        clouds.append((torch.sigmoid(5.3 + torch.randn(20_000, generator=generator) + target), target))
    metrics = BinnedAUROC(), BinnedAveragePrecision()
    for metric in metrics:
        for scores, target in clouds:
            metric.update(scores, target)
    scores, target = (torch.cat(part).numpy() for part in zip(*clouds, strict=True))
    for metric, exact in zip(metrics, (roc_auc_score, average_precision_score), strict=True):
        found = metric.compute()
        assert found.lower <= exact(target, scores) <= found.upper
        assert found.upper - found.lower < 1e-2  # without, 0.3 and more
