"""Intervals against a loop that resamples clouds with all their points and calls scikit-learn."""

from zlib import crc32

import numpy as np
import pytest
from naive_regions import naive_aupro
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.metrics.bootstrap import PointSketches, confidence_intervals, multiplicities, newcombe
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
    drawn = multiplicities(label, 60, np.random.default_rng([0, crc32(b"cup")]), np.arange(12))
    loop = [naive_replicate(row, label, objects, scores, masks, regions) for row in drawn]
    found = confidence_intervals("cup", label, objects, sketched(scores, masks, regions), replicates=60)
    assert found.pop("o_auroc") == newcombe(float(roc_auc_score(label, objects)), 6, 6)
    tolerance = {"o_aupr": 1e-12, "p_auroc": 2e-3, "p_aupr": 1e-2, "aupro": 2e-2}
    assert found.keys() == tolerance.keys()
    # Six clouds of either label: further out than 2.5 %, by Student's t with five degrees of freedom.
    tail = norm.cdf(t.ppf(0.025, 5) * (6 / 5) ** 0.5)
    assert 0.002 < tail < 0.003
    for metric, interval in found.items():
        expected = np.quantile([row[metric] for row in loop], [tail, 1 - tail])
        assert interval == pytest.approx(expected, abs=tolerance[metric]), metric
        assert interval[1] - interval[0] > 0.05


def test_draws_keep_the_number_of_each_label():
    label = np.array([True] * 3 + [False] * 7)
    drawn = multiplicities(label, 500, np.random.default_rng(0), np.arange(10))
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


@pytest.mark.parametrize("truth", [0.76, 0.92, 0.98])
@pytest.mark.parametrize(("normal", "anomalous"), [(6, 12), (40, 40)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(normal, anomalous, truth):
    # Scores of anomalous clouds d deviations above those of normal ones have AUROC Phi(d / sqrt 2).
    rng, label = np.random.default_rng(0), np.repeat([False, True], [normal, anomalous])
    scores = rng.standard_normal((300, len(label))) + 2**0.5 * norm.ppf(truth) * label
    found = [confidence_intervals("cup", label, row, None, 2)["o_auroc"] for row in scores]
    assert 0.92 <= np.mean([low <= truth <= high for low, high in found]) <= 0.995


@pytest.mark.parametrize(("normal", "anomalous"), [(6, 12), (40, 40)])
def test_bootstrapped_intervals_cover_the_truth_too(normal, anomalous):
    # Average precision of a large sample of the same scores is the truth.
    rng = np.random.default_rng(0)
    many = np.repeat([False, True], [100_000 * normal // anomalous, 100_000])
    truth = average_precision_score(many, rng.standard_normal(len(many)) + 1.2 * many)
    label = np.repeat([False, True], [normal, anomalous])
    found = [
        confidence_intervals("cup", label, rng.standard_normal(len(label)) + 1.2 * label, None, 200)["o_aupr"]
        for _ in range(150)
    ]
    assert np.mean([low <= truth <= high for low, high in found]) >= 0.88


@pytest.mark.parametrize("auroc", [0.0, 0.01, 0.5, 0.83, 1.0])
def test_newcombes_interval_ends_where_the_value_is_z_errors_away(auroc):
    low, high = newcombe(auroc, 7, 11)
    grid = np.linspace(1e-6, 1 - 1e-6, 400_001)
    q1, q2 = grid / (2 - grid), 2 * grid**2 / (1 + grid)  # Hanley and McNeil's, with (7 + 11) / 2 - 1 for n - 1 of both
    variance = (grid * (1 - grid) + 8 * (q1 - grid**2) + 8 * (q2 - grid**2)) / 77
    inside = grid[np.abs(grid - auroc) <= 1.959964 * variance**0.5]
    assert (low, high) == pytest.approx((inside.min(), inside.max()), abs=1e-5)
    assert newcombe(1 - auroc, 11, 7) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_clouds_of_one_label_have_intervals_of_their_points():
    label, objects, *points = make_category(2)
    found = confidence_intervals("cup", np.ones_like(label), objects, sketched(*points), 100)
    assert found.keys() == {"p_auroc", "p_aupr", "aupro"}
    assert all(0 < low < high < 1 for low, high in found.values())


def test_interval_of_the_mean_is_that_of_independent_metrics():
    categories = [make_category(seed) for seed in range(4)]
    values, intervals, replicates = [], [], []
    for seed, (label, objects, *_) in enumerate(categories):
        values.append(float(roc_auc_score(label, objects)))
        drawn = multiplicities(label, 2000, np.random.default_rng(seed), np.arange(12))
        won = objects[label][:, None] > objects[~label]
        replicates.append(np.einsum("rp,pn,rn->r", drawn[:, label], won, drawn[:, ~label]) / won.size)
        intervals.append(tuple(np.quantile(replicates[-1], [0.025, 0.975])))
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


@pytest.mark.parametrize("anomalous", [1, 2])
def test_draws_of_a_single_scan_say_nothing(anomalous):
    label, objects, scores, masks, regions = make_category(0)
    kept = np.concatenate([np.flatnonzero(~label), np.flatnonzero(label)[:anomalous]])
    parts = ([part[i] for i in kept] for part in (scores, masks, regions))
    found = confidence_intervals("cup", label[kept], objects[kept], sketched(*parts), replicates=50)
    assert found.keys() == ({"o_auroc"} if anomalous == 1 else {"o_auroc", "o_aupr", "p_auroc", "p_aupr", "aupro"})
    assert found["o_auroc"][1] - found["o_auroc"][0] > 0.3
