from __future__ import annotations

import math

import numpy as np
import pytest

from anomaly3d.ice.features import CloudFeatures
from anomaly3d.ice.probes import by_category, correlations, embed_in_plane, entanglement


def clouds(category: np.ndarray, seed: int, seen_as: np.ndarray | None = None) -> CloudFeatures:
    """Clouds whose reconstruction lies around the centre of category `seen_as`; `act` says the truth, `max` nothing."""
    rng = np.random.default_rng(seed)
    centres = 10 * np.eye(3, 8)
    noise = rng.normal(size=(len(category), 8))
    encoded = {"act": centres[category] + noise, "max": rng.permuted(noise, axis=0)}
    rebuilt = centres[category if seen_as is None else seen_as] + noise
    return CloudFeatures(
        [str(i) for i in range(len(category))], category, np.ones(len(category)), rebuilt, encoded, None
    )


TRAINED = clouds(np.arange(60) % 3, seed=0)


def test_accuracy_is_the_share_of_clouds_rebuilt_as_their_own_category():
    truth = np.arange(30) % 3
    seen_as = truth.copy()
    seen_as[:6] = (truth[:6] + 1) % 3
    found = entanglement(TRAINED, clouds(truth, 1, seen_as))
    assert found.accuracy == 24 / 30
    np.testing.assert_array_equal(found.predicted, seen_as)
    assert (found.score[:6] < 0.1).all()
    assert (found.score[6:] > 0.9).all()
    assert found.linear["act"] == 1.0
    assert found.linear["max"] < 0.7
    assert set(found.linear) == {"act", "max"}  # a model without a mean has no probe of it


def test_the_score_is_the_true_category_s_probability():
    truth = np.arange(30) % 3
    tested = clouds(truth, 2)
    score = entanglement(TRAINED, tested).score
    falling = entanglement(TRAINED, tested._replace(error=2 - 3 * score))
    assert falling.pearson == pytest.approx(-1)
    assert falling.spearman == pytest.approx(-1)
    bent = entanglement(TRAINED, tested._replace(error=np.exp(50 * score)))
    assert bent.spearman == pytest.approx(1)
    assert bent.pearson < 1


def test_correlations_equal_their_definition():
    a, b = np.random.default_rng(0).normal(size=(2, 20))
    b = b + a
    b[3] = b[4]  # a tie

    def pearson(x: list[float], y: list[float]) -> float:
        mx, my = sum(x) / len(x), sum(y) / len(y)
        cov = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
        return cov / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))

    def ranks(x: list[float]) -> list[float]:
        return [sum(q < p for q in x) + (sum(q == p for q in x) + 1) / 2 for p in x]

    expected = pearson(a.tolist(), b.tolist()), pearson(ranks(a.tolist()), ranks(b.tolist()))
    assert correlations(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(("a", "b"), [([1.0, 1, 1], [1.0, 2, 3]), ([1.0, 2, 3], [4.0, 4, 4]), ([1.0, 2], [3.0, 4])])
def test_a_correlation_that_is_not_defined_is_nan(a: list[float], b: list[float]):
    assert all(map(math.isnan, correlations(np.array(a), np.array(b))))


def test_same_seed_same_bits():
    tested = clouds(np.arange(30) % 3, 3)
    first, again, other = (entanglement(TRAINED, tested, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.score, again.score)
    assert (first.score != other.score).any()


def test_t_sne_keeps_categories_apart_and_spreads_each():
    category = np.arange(36) % 3
    z = clouds(category, 4).rebuilt
    plane = embed_in_plane(z, clusters=3, seed=0)
    np.testing.assert_array_equal(plane, embed_in_plane(z, clusters=3, seed=0))
    distance = np.linalg.norm(plane[:, None] - plane[None], axis=-1) + np.diag(np.full(36, np.inf))
    np.testing.assert_array_equal(category[distance.argmin(1)], category)
    same = category[:, None] == category
    assert distance[same & np.isfinite(distance)].mean() > 0.02 * distance[~same].mean()


def test_correlation_between_and_within_categories_can_differ_in_sign() -> None:
    category = np.repeat([0, 1, 2], 4)
    score = 0.1 * category + np.tile([0.01, 0.02, 0.03, 0.04], 3)
    error = 10.0 - 2 * category + np.tile([0.1, 0.2, 0.3, 0.4], 3)  # falls from category to category, rises in each
    error[8:] = 7.0  # one that does not vary
    between, within = by_category(score, error, category)
    assert between == pytest.approx(-1)
    assert within == pytest.approx(1)
    assert all(map(math.isnan, by_category(score[:2], error[:2], category[:2])))
