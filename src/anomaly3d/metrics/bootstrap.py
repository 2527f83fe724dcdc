"""Confidence intervals by bootstrap over clouds (Efron and Tibshirani, 1993, chapter 13: percentile intervals).

Percentiles of few clouds are too near to each other: they are taken further out, by Student's t and the root of
n / (n - 1) for the n scans of the rarer label (Hesterberg, 2015, The American Statistician 69, "expanded percentile").
No draw from clouds in perfect order knows that others may not be: of 6 normal and 12 anomalous clouds at an AUROC of
0.98 the bootstrap held it in 46 % of 400 trials, the interval of Newcombe (2006, Statistics in Medicine 25, method 5)
in 97 %, and at 0.76 in 90 and 97 % at the same width. So O-AUROC has Newcombe's, of as many clouds as there are scans.
The other metrics have no such remedy: an interval from 100 to 100 of theirs says nothing.

The clouds of a category are drawn with replacement, the normal and the anomalous ones apart, so that both numbers stay.
A cloud is drawn with all its points, and with all others of its source: a cut or copied scan is no second observation.
A replicate is a vector of multiplicities k, and its histogram the sum of k times the histograms of the single clouds:
one matrix product for all replicates, then the metrics of `metrics/binned.py` in batches. The clouds' histograms come
from their quantiles (`metrics/sketch.py`) over bins that hold about equal shares of the category; what binning moves is
small beside the interval's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student

from anomaly3d.metrics.binned import binned_aupro, binned_auroc, binned_average_precision
from anomaly3d.metrics.result import Interval
from anomaly3d.metrics.sketch import MASS

REPLICATES = 1000
LEVEL = 0.95
_BINS = 1024  # of the points' histograms
_AT_ONCE = 250  # replicates: bounds the memory


@dataclass(frozen=True)
class PointSketches:
    """Quantiles of the points of each cloud, from the largest down, and what they stand for in total."""

    normal: Float[np.ndarray, "C Q"]
    anomalous: Float[np.ndarray, "C Q"]
    overlap: Float[np.ndarray, "C Q"]  # of anomalous points, each weighing 1 / (points of its region)
    normal_points: Int[np.ndarray, " C"]
    anomalous_points: Int[np.ndarray, " C"]
    regions: Int[np.ndarray, " C"]


def confidence_intervals(
    name: str,
    label: Bool[np.ndarray, " C"],
    object_score: Shaped[np.ndarray, " C"],
    points: PointSketches | None,
    replicates: int = REPLICATES,
    seed: int = 0,
    source: Int[np.ndarray, " C"] | None = None,
) -> dict[str, Interval]:
    """95 % intervals of o_auroc, o_aupr and, with `points`, p_auroc, p_aupr and aupro of one category.

    Without clouds of both labels those of the points alone. Where a label that counts has one scan, whose draws cannot
    vary, only that of o_auroc.

    The same clouds in the same order give the same intervals in every process and run.

    Args:
        name: of the category; with `seed` it decides the draws, so that categories are drawn independently.
        label: true for an anomalous cloud.
        object_score: of each cloud.
        points: of the clouds, in the same order; None where a cloud has no point truth.
        replicates: number of draws.
        seed: of the draws.
        source: of each cloud: what derives from the same scan is drawn together; None: each has its own.
    """
    source = np.arange(len(label)) if source is None else source
    drawn = multiplicities(label, replicates, np.random.default_rng([seed, crc32(name.encode())]), source)
    scans = [len(np.unique(source[label == truth])) for truth in (False, True)]
    fewest = min(filter(None, scans), default=0)
    found: dict[str, Interval] = {}
    if all(scans):
        one_hot = (object_score[:, None] == np.unique(object_score)).astype(np.float64)
        objects = (one_hot * label[:, None], one_hot * ~label[:, None])
        auroc = binned_auroc(*(torch.from_numpy(counts.sum(0)) for counts in objects)).value.item()
        found = {"o_auroc": newcombe(auroc, *scans)}
        if fewest > 1:
            found |= _intervals(drawn, {"o_aupr": (binned_average_precision, *objects)}, _tail(fewest))
    if points is None or fewest < 2:
        return found
    edges = _edges(points)
    negatives = _counts(points.normal, points.normal_points, edges)
    positives = _counts(points.anomalous, points.anomalous_points, edges)
    overlap = _counts(points.overlap, points.regions, edges)
    of_points = {
        "p_auroc": (binned_auroc, positives, negatives),
        "p_aupr": (binned_average_precision, positives, negatives),
        "aupro": (binned_aupro, overlap, negatives),
    }
    return found | _intervals(drawn, of_points, _tail(fewest))


def multiplicities(
    label: Bool[np.ndarray, " C"],
    replicates: int,
    rng: np.random.Generator,
    source: Int[np.ndarray, " C"],
) -> Int[np.ndarray, "R C"]:
    """How often each replicate draws each cloud; every replicate has as many sources of each label as there are.

    Clouds of one `source` are drawn together.
    """
    drawn = np.zeros((replicates, len(label)), dtype=np.int64)
    for truth in (False, True):
        of_label = label == truth
        _, group = np.unique(source[of_label], return_inverse=True)
        if len(group):
            count = int(group.max()) + 1
            drawn[:, of_label] = rng.multinomial(count, np.full(count, 1 / count), size=replicates)[:, group]
    return drawn


def newcombe(auroc: float, normal: int, anomalous: int) -> Interval:
    """The AUROCs t from which the one of so many clouds lies within z standard errors (Newcombe 2006, method 5).

    V(t) = t (1 - t) (1 + m ((1 - t) / (2 - t) + t / (1 + t))) / (P n),    m = (P + n) / 2 - 1
    """
    z = norm.ppf((1 + LEVEL) / 2)
    more = (normal + anomalous) / 2 - 1

    def beyond(t: float) -> float:
        variance = t * (1 - t) * (1 + more * ((1 - t) / (2 - t) + t / (1 + t))) / (normal * anomalous)
        return abs(auroc - t) - z * variance**0.5

    # Not from 0 or 1 itself, whose variance is zero.
    low = brentq(beyond, 0.0, auroc - 1e-9) if auroc > 1e-9 else 0.0
    high = brentq(beyond, auroc + 1e-9, 1.0) if auroc < 1 - 1e-9 else 1.0
    return float(low), float(high)  # pyright: ignore[reportArgumentType]


def _tail(scans: int) -> float:
    """Share of the replicates beyond an end of the interval, from so many scans of the rarer label, 2 or more."""
    return float(norm.cdf(student.ppf((1 - LEVEL) / 2, scans - 1) * (scans / (scans - 1)) ** 0.5))


def _intervals(drawn: Int[np.ndarray, "R C"], metrics: Mapping[str, tuple], tail: float) -> dict[str, Interval]:
    """Interval of each metric, given as its function and its two histograms per cloud; NaN where it is undefined."""
    found = {}
    for metric, (function, *histograms) in metrics.items():
        per_cloud = [torch.from_numpy(histogram) for histogram in histograms]
        batches = torch.from_numpy(drawn).double().split(_AT_ONCE)
        values = torch.cat([function(*(batch @ counts for counts in per_cloud)).value for batch in batches]).numpy()
        values = values[~np.isnan(values)]
        low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
        found[metric] = (float(low), min(float(high), 1.0))  # sums of many shares may round to more than all
    return found


def _edges(points: PointSketches) -> Float[np.ndarray, " E"]:
    """Lower edges of bins with about equal shares of the category's points: half by normal, half by anomalous ones."""
    normal, anomalous = points.normal[points.normal_points > 0], points.anomalous[points.anomalous_points > 0]
    share = np.linspace(0, 1, _BINS // 4)
    parts = []
    for values, weight in ((normal, points.normal_points), (anomalous, points.anomalous_points)):
        if len(values):
            parts += [_spread(values, weight[weight > 0], share), _spread(values, weight[weight > 0], 1 - share**3)]
    return np.unique(np.concatenate(parts))


def _spread(
    values: Float[np.ndarray, "c Q"], weight: Int[np.ndarray, " c"], level: Float64[np.ndarray, " L"]
) -> Float[np.ndarray, " L"]:
    """Scores at these shares of the weight, from below."""
    order = np.argsort(values, axis=None)
    reached = np.cumsum((weight[:, None] * MASS).ravel()[order])
    return values.ravel()[order][np.minimum(np.searchsorted(reached, level * reached[-1]), len(order) - 1)]


def _counts(
    values: Float[np.ndarray, "C Q"], weight: Int[np.ndarray, " C"], edges: Float[np.ndarray, " E"]
) -> Float64[np.ndarray, "C E+1"]:
    """Histogram of each cloud: its weight, shared out by `MASS`, over the bins that the edges begin."""
    bins = len(edges) + 1
    index = np.searchsorted(edges, values, side="right") + bins * np.arange(len(values))[:, None]
    mass = weight[:, None] * MASS
    return np.bincount(index.ravel(), mass.ravel(), minlength=bins * len(values)).reshape(len(values), bins)
