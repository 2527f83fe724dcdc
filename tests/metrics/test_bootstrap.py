"""Intervals against a loop that resamples clouds with all their points and calls scikit-learn."""

from zlib import crc32

import numpy as np
import pytest
from naive_regions import naive_aupro
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.metrics.bootstrap import PointSketches, confidence_intervals, multiplicities
from anomaly3d.metrics.result import mean_interval
from anomaly3d.metrics.sketch import MASS, QUANTILES, quantiles


def make_category(seed: int, clouds: int = 12, points: int = 400):
    """Clouds of their own levels, so that intervals are wide; the anomalous ones have two regions each."""
    rng = np.random.default_rng(seed)
    label = np.arange(clouds) % 2 == 1
    scores, masks, regions = [], [], []
    for anomalous in label:
        mask = np.arange(points) < (40 if anomalous else 0)
        rng.shuffle(mask)
        scores.append((rng.normal(0, 0.5) + rng.standard_normal(points) + 1.5 * mask).astype(np.float32))
        masks.append(mask)
        regions.append((np.arange(mask.sum()) >= 10).astype(int))
    return label, rng.standard_normal(clouds) + label, scores, masks, regions


def sketched(scores, masks, regions) -> PointSketches:
    weights = [1 / np.bincount(r, minlength=1)[r] if len(r) else np.empty(0) for r in regions]
    return PointSketches(
        normal=np.stack([quantiles(s[~m]) for s, m in zip(scores, masks, strict=True)]),
        anomalous=np.stack([quantiles(s[m]) for s, m in zip(scores, masks, strict=True)]),
        overlap=np.stack([quantiles(s[m], w) for s, m, w in zip(scores, masks, weights, strict=True)]),
        normal_points=np.array([(~m).sum() for m in masks]),
        anomalous_points=np.array([m.sum() for m in masks]),
        regions=np.array([len(np.unique(r)) for r in regions]),
    )


def naive_replicate(drawn, label, objects, scores, masks, regions) -> dict[str, float]:
    chosen = np.repeat(np.arange(len(label)), drawn)
    points, truth = (np.concatenate([part[c] for c in chosen]) for part in (scores, masks))
    overlaps = [scores[c][masks[c]][regions[c] == r] for c in chosen for r in np.unique(regions[c])]
    return {
        "o_auroc": float(roc_auc_score(label[chosen], objects[chosen])),
        "o_aupr": float(average_precision_score(label[chosen], objects[chosen])),
        "p_auroc": float(roc_auc_score(truth, points)),
        "p_aupr": float(average_precision_score(truth, points)),
        "aupro": naive_aupro([o.round(1) for o in overlaps], points[~truth].round(1)),  # few thresholds: fast
    }


def test_equals_a_loop_with_all_points():
    label, objects, scores, masks, regions = make_category(0)
    # The same draws: the generator is seeded with the seed and the category's name.
    drawn = multiplicities(label, 60, np.random.default_rng([0, crc32(b"cup")]))
    loop = [naive_replicate(row, label, objects, scores, masks, regions) for row in drawn]
    found = confidence_intervals("cup", label, objects, sketched(scores, masks, regions), replicates=60)
    tolerance = {"o_auroc": 1e-12, "o_aupr": 1e-12, "p_auroc": 2e-3, "p_aupr": 1e-2, "aupro": 2e-2}
    assert found.keys() == tolerance.keys()
    for metric, interval in found.items():
        expected = np.quantile([row[metric] for row in loop], [0.025, 0.975])
        assert interval == pytest.approx(expected, abs=tolerance[metric]), metric
        assert interval[1] - interval[0] > 0.05


def test_draws_keep_the_number_of_each_label():
    label = np.array([True] * 3 + [False] * 7)
    drawn = multiplicities(label, 500, np.random.default_rng(0))
    assert (drawn[:, label].sum(1) == 3).all()
    assert (drawn[:, ~label].sum(1) == 7).all()
    assert drawn.mean(0) == pytest.approx(np.ones(10), abs=0.15)
    assert (drawn[:, 0] == 0).mean() == pytest.approx((2 / 3) ** 3, abs=0.07)


def test_same_seed_same_interval_and_categories_differ():
    label, objects, *_ = make_category(1)
    one = confidence_intervals("cup", label, objects, None, 100, seed=3)
    assert one == confidence_intervals("cup", label, objects, None, 100, seed=3)
    assert one != confidence_intervals("cup", label, objects, None, 100, seed=4)
    assert one != confidence_intervals("bed", label, objects, None, 100, seed=3)
    assert one.keys() == {"o_auroc", "o_aupr"}


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # Normal and anomalous clouds one deviation apart: AUROC is Phi(1 / sqrt 2) = 0.7602.
    rng, label = np.random.default_rng(0), np.repeat([False, True], 40)
    hits = 0
    for trial in range(150):
        interval = confidence_intervals(f"c{trial}", label, rng.standard_normal(80) + label, None, 200)["o_auroc"]
        hits += interval[0] <= 0.7602 <= interval[1]
    assert 0.88 <= hits / 150 <= 0.99


def test_interval_of_the_mean_is_that_of_independent_metrics():
    categories = [make_category(seed) for seed in range(4)]
    values, intervals, replicates = [], [], []
    for seed, (label, objects, *_) in enumerate(categories):
        values.append(float(roc_auc_score(label, objects)))
        intervals.append(confidence_intervals(str(seed), label, objects, None, 2000)["o_auroc"])
        drawn = multiplicities(label, 2000, np.random.default_rng(seed))
        won = objects[label][:, None] > objects[~label]
        replicates.append(np.einsum("rp,pn,rn->r", drawn[:, label], won, drawn[:, ~label]) / won.size)
    expected = np.quantile(np.mean(replicates, axis=0), [0.025, 0.975])
    assert mean_interval(values, intervals) == pytest.approx(expected, abs=0.015)
    assert np.isnan(mean_interval([], [])).all()
    assert np.isnan(mean_interval([0.5, 0.5], [(0.4, 0.6), (np.nan, np.nan)])).all()


@pytest.mark.parametrize("count", [1, 7, 1000, 50_000])
def test_quantiles_stand_for_the_scores_they_come_from(count):
    scores = np.random.default_rng(count).standard_normal(count).astype(np.float32)
    found = quantiles(scores)
    assert found.shape == (QUANTILES,)
    assert (np.diff(found) <= 0).all()
    assert np.isin(found, scores).all()
    assert MASS.sum() == pytest.approx(1)
    for threshold in (-1.0, 0.0, 1.0, 2.5):
        share = (scores >= threshold).mean()
        assert MASS[found >= threshold].sum() == pytest.approx(share, abs=0.005)
    np.testing.assert_array_equal(quantiles(scores, np.ones(count)), found)


def test_weighted_quantiles_equal_those_of_repeated_scores():
    rng = np.random.default_rng(0)
    scores, weight = rng.random(200).astype(np.float32), rng.integers(1, 5, 200)
    np.testing.assert_array_equal(quantiles(scores, weight.astype(float)), quantiles(np.repeat(scores, weight)))


def test_clouds_of_one_source_are_drawn_together():
    label = np.array([0, 0, 0, 1, 1, 1, 1], dtype=bool)
    source = np.array([7, 7, 3, 5, 5, 8, 9])
    drawn = multiplicities(label, 400, np.random.default_rng(0), source)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 3] == drawn[:, 4]).all()
    assert not (drawn[:, 5] == drawn[:, 6]).all()
    assert (drawn[:, [0, 2]].sum(1) == 2).all()  # as many sources of each label as there are
    assert (drawn[:, [3, 5, 6]].sum(1) == 3).all()
    alone = multiplicities(label, 400, np.random.default_rng(0), np.arange(7)[::-1].copy())
    assert not (alone[:, 0] == alone[:, 1]).all()


def test_copies_of_a_scan_do_not_narrow_the_interval():
    label, objects, scores, masks, regions = make_category(3)
    single = confidence_intervals("cup", label, objects, sketched(scores, masks, regions))
    doubled = [part * 2 for part in (scores, masks, regions)]
    twice = (np.tile(label, 2), np.tile(objects, 2), sketched(*doubled))
    known = confidence_intervals("cup", *twice, source=np.tile(np.arange(len(label)), 2))
    taken_for_new = confidence_intervals("cup", *twice)
    for metric in ("o_auroc", "p_auroc", "aupro"):
        assert known[metric] == pytest.approx(single[metric], abs=1e-2), metric
        width = [high - low for low, high in (known[metric], taken_for_new[metric])]
        assert width[1] < 0.9 * width[0], metric
