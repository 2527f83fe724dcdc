"""Confidence intervals by bootstrap over clouds (Efron and Tibshirani, 1993, chapter 13: percentile intervals).

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
    drawn = multiplicities(label, replicates, np.random.default_rng([seed, crc32(name.encode())]), source)
    one_hot = (object_score[:, None] == np.unique(object_score)).astype(np.float64)
    objects = (one_hot * label[:, None], one_hot * ~label[:, None])
    found = _intervals(drawn, {"o_auroc": (binned_auroc, *objects), "o_aupr": (binned_average_precision, *objects)})
    if points is None:
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
    return found | _intervals(drawn, of_points)


def multiplicities(
    label: Bool[np.ndarray, " C"],
    replicates: int,
    rng: np.random.Generator,
    source: Int[np.ndarray, " C"] | None = None,
) -> Int[np.ndarray, "R C"]:
    """How often each replicate draws each cloud; every replicate has as many sources of each label as there are.

    Clouds of one `source` are drawn together; None: each has its own.
    """
    source = np.arange(len(label)) if source is None else source
    drawn = np.zeros((replicates, len(label)), dtype=np.int64)
    for truth in (False, True):
        of_label = label == truth
        _, group = np.unique(source[of_label], return_inverse=True)
        if len(group):
            count = int(group.max()) + 1
            drawn[:, of_label] = rng.multinomial(count, np.full(count, 1 / count), size=replicates)[:, group]
    return drawn


def _intervals(drawn: Int[np.ndarray, "R C"], metrics: Mapping[str, tuple]) -> dict[str, Interval]:
    """Interval of each metric, given as its function and its two histograms per cloud; NaN where it is undefined."""
    tail = (1 - LEVEL) / 2
    found = {}
    for metric, (function, *histograms) in metrics.items():
        per_cloud = [torch.from_numpy(histogram) for histogram in histograms]
        batches = torch.from_numpy(drawn).double().split(_AT_ONCE)
        values = torch.cat([function(*(batch @ counts for counts in per_cloud)).value for batch in batches]).numpy()
        values = values[~np.isnan(values)]
        low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
        found[metric] = (float(low), float(high))
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
