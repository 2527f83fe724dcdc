from collections.abc import Iterator
from decimal import ROUND_DOWN, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.metrics.attainable import attainable_prints, largest_ap, largest_ap_with_ties, largest_mean_ap


@pytest.mark.parametrize("decimals", [1, 2, 3])
@pytest.mark.parametrize("pairs", [1, 2, 7, 16, 45, 210, 999, 1500])
def test_attainable_prints_are_those_that_decimal_arithmetic_prints(pairs, decimals):
    prints = {
        int((Decimal(k) / pairs).quantize(Decimal(1).scaleb(-decimals), rounding).scaleb(decimals))
        for k in range(pairs + 1)
        for rounding in (ROUND_DOWN, ROUND_HALF_UP, ROUND_HALF_DOWN)
    }
    assert attainable_prints(pairs, decimals).tolist() == sorted(prints)


def rankings(normal: int, anomalous: int) -> Iterator[list[tuple[int, int]]]:
    """All rankings as (normal, anomalous) clouds of equal score, from the top."""
    if normal == anomalous == 0:
        yield []
    for p in range(normal + 1):
        for n in range(anomalous + 1):
            if p or n:
                yield from ([(p, n), *rest] for rest in rankings(normal - p, anomalous - n))


def brute_force(normal: int, anomalous: int, ties: bool) -> np.ndarray:
    """Largest AP of scikit-learn over all rankings, by half pairs in order."""
    largest = np.full(2 * normal * anomalous + 1, -np.inf)
    for groups in rankings(normal, anomalous):
        if ties or all(p + n == 1 for p, n in groups):
            label = [kind for p, n in groups for kind in [0] * p + [1] * n]
            scores = [-place for place, (p, n) in enumerate(groups) for _ in range(p + n)]
            halves = round(2 * normal * anomalous * float(roc_auc_score(label, scores)))
            largest[halves] = max(largest[halves], average_precision_score(label, scores))
    return largest


@pytest.mark.parametrize(("normal", "anomalous"), [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2)])
def test_largest_ap_is_the_largest_of_all_rankings(normal, anomalous):
    untied, tied = (brute_force(normal, anomalous, ties) for ties in (False, True))
    np.testing.assert_allclose(largest_ap(normal, anomalous), untied[::2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(largest_ap_with_ties(normal, anomalous), tied, rtol=0, atol=1e-12)


def test_moving_single_anomalous_clouds_to_the_end_is_not_always_best():
    # 2 of 20 pairs in order: (9, 9) normal clouds above the two beats (8, 10).
    assert largest_ap(10, 2)[2] == pytest.approx((1 / 10 + 2 / 11) / 2)


def test_moving_whole_clouds_to_the_end_is_best_where_it_leads_to_the_auroc():
    normal, anomalous = 15, 23
    for moved in range(anomalous + 1):
        ranks = np.arange(1, anomalous + 1)
        expected = np.mean(ranks / (ranks + np.where(ranks > anomalous - moved, normal, 0)))
        assert largest_ap(normal, anomalous)[normal * (anomalous - moved)] == pytest.approx(expected, abs=1e-12)
        assert largest_mean_ap(1 - moved / anomalous, [largest_ap(normal, anomalous)]) == pytest.approx(expected)


@pytest.mark.parametrize("largest", [largest_ap, largest_ap_with_ties])
def test_no_two_rankings_have_a_mean_ap_above_the_bound_for_their_mean_auroc(largest):
    curves = [largest(3, 2), largest(4, 3)]
    for i, j in np.ndindex(len(curves[0]), len(curves[1])):
        auroc = (i / (len(curves[0]) - 1) + j / (len(curves[1]) - 1)) / 2
        assert (curves[0][i] + curves[1][j]) / 2 <= largest_mean_ap(auroc, curves) + 1e-12
