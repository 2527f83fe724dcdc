"""All metrics of one category, from its clouds and the pool of their points."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from anomaly3d.metrics.binned import (
    Bounded,
    binned_aupro,
    binned_auroc,
    binned_average_precision,
    binned_f1_max,
    precision_recall_f1,
    tied_bins,
)
from anomaly3d.metrics.bootstrap import PointSketches, confidence_intervals
from anomaly3d.metrics.records import Clouds
from anomaly3d.metrics.result import CategoryResult, Thresholds

OF_CLOUDS, OF_POINTS = "O-AUROC and O-AUPR", "P-AUROC, P-AUPR and AUPRO"


class PointPool(NamedTuple):
    """The points of all clouds of a category in bins."""

    positives: Shaped[Tensor, " bins"]
    negatives: Shaped[Tensor, " bins"]
    overlap: Shaped[Tensor, " bins"]
    edge: Callable[[int], float]  # the least score of a bin
    exact: bool  # a bin holds one score only


def category_result(
    name: str, clouds: Clouds, pool: PointPool, thresholds: Thresholds | None, replicates: int
) -> tuple[CategoryResult, dict[str, str]]:
    """Metrics of one category's clouds, and for each undefined group of metrics the reason.

    Args:
        name: of the category.
        clouds: its C clouds, each once.
        pool: their points.
        thresholds: chosen without test data; None leaves precision, recall and F1 out.
        replicates: of the bootstrap; 0 leaves the intervals out.
    """
    anomalous = int(clouds.label.sum())
    # Without the truth of every cloud, the pool of points would not be the category's.
    complete = bool((clouds.points_with_truth == clouds.points).all())
    positive, points = (int(count.sum()) for count in (clouds.anomalous_points, clouds.points))
    of_clouds = _one_class(anomalous, len(clouds) - anomalous, "cloud")
    of_points = _one_class(positive, points - positive, "point") if complete else "not every cloud has a point mask"
    found = {} if of_clouds else _of_clouds(clouds, thresholds)
    if not of_points:
        found |= _of_points(clouds, pool, thresholds)
    if replicates and not (of_clouds and of_points):
        found |= _intervals(name, clouds, not of_points, replicates)
    undefined = dict.fromkeys(("o_auroc", "o_aupr", "p_auroc", "p_aupr", "aupro"), float("nan"))
    counts = {
        "clouds": len(clouds),
        "anomalous_clouds": anomalous,
        "points": points,
        "regions": int(clouds.regions.sum()),
    }
    row = CategoryResult(category=name, **(undefined | found), **counts)  # pyright: ignore[reportArgumentType]
    return row, {metrics: reason for metrics, reason in ((OF_CLOUDS, of_clouds), (OF_POINTS, of_points)) if reason}


def _of_clouds(clouds: Clouds, thresholds: Thresholds | None) -> dict[str, float]:
    label = clouds.label.bool()
    bins = tied_bins(clouds.object_score, label)
    best = binned_f1_max(bins.positives, bins.negatives)
    found = {
        "o_auroc": binned_auroc(bins.positives, bins.negatives).value.item(),
        "o_aupr": binned_average_precision(bins.positives, bins.negatives).value.item(),
        "o_f1_max": best.value.item(),
        "o_f1_max_threshold": bins.scores[best.bin].item(),
    }
    if thresholds is not None:
        alarm = clouds.object_score >= thresholds.object
        found |= _decisions("o", int((alarm & label).sum()), int((alarm & ~label).sum()), int(label.sum()))
    return found


def _of_points(clouds: Clouds, pool: PointPool, thresholds: Thresholds | None) -> dict[str, float]:
    best = binned_f1_max(pool.positives, pool.negatives)
    per_cloud = clouds.auroc[~clouds.auroc.isnan()]
    found = {
        "p_auroc_per_cloud": per_cloud.mean().item(),
        "p_f1_max": best.value.item(),
        "p_f1_max_threshold": pool.edge(int(best.bin)),
    }
    bounded: dict[str, Bounded] = {
        "p_auroc": binned_auroc(pool.positives, pool.negatives),
        "p_aupr": binned_average_precision(pool.positives, pool.negatives),
        "aupro": binned_aupro(pool.overlap, pool.negatives),
    }
    for metric, (value, lower, upper) in bounded.items():
        ends = (value, value) if pool.exact else (lower, upper)
        found |= {metric: value.item(), f"{metric}_lower": ends[0].item(), f"{metric}_upper": ends[1].item()}
    if thresholds is not None:
        alarms = (int(clouds.true_alarms.sum()), int(clouds.false_alarms.sum()))
        found |= _decisions("p", *alarms, int(clouds.anomalous_points.sum()))
    return found


def _decisions(level: str, true_alarms: int, false_alarms: int, positives: int) -> dict[str, float]:
    values = precision_recall_f1(true_alarms, false_alarms, positives)
    return {f"{level}_{name}": value for name, value in zip(("precision", "recall", "f1"), values, strict=True)}


def _intervals(name: str, clouds: Clouds, with_points: bool, replicates: int) -> dict[str, float]:
    clouds = clouds.select(clouds.cloud_id.argsort())  # whatever order or process they came in
    normal, anomalous, overlap = clouds.sketches.cpu().numpy().transpose(1, 0, 2)
    counts = (
        field.cpu().numpy()
        for field in (clouds.points - clouds.anomalous_points, clouds.anomalous_points, clouds.regions)
    )
    found = confidence_intervals(
        name,
        clouds.label.bool().cpu().numpy(),
        clouds.object_score.cpu().numpy().astype(np.float64),
        PointSketches(normal, anomalous, overlap, *counts) if with_points else None,
        replicates,
        source=clouds.source.cpu().numpy(),
    )
    sides = (
        (f"{metric}_ci_{end}", ends[side]) for metric, ends in found.items() for side, end in enumerate(("low", "high"))
    )
    return dict(sides)


def _one_class(positive: int, negative: int, what: str) -> str | None:
    """Why a ranking metric does not exist for these numbers, or None."""
    if not positive + negative:
        return f"no {what}"
    if not negative:
        return f"every {what} is anomalous"
    return None if positive else f"every {what} is normal"
