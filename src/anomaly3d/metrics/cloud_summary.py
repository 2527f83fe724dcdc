"""What the evaluator keeps of one cloud's points besides the pool: regions, its own AUROC, quantiles, alarms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64

from anomaly3d.metrics.functional import auroc
from anomaly3d.metrics.regions import label_regions
from anomaly3d.metrics.sketch import QUANTILES, quantiles


class CloudSummary(NamedTuple):
    """Of one cloud with point truth.

    Attributes:
        overlap: weight of each anomalous point, 1 / (points of its region), in the order of the points.
        regions: number of regions.
        auroc: of the cloud's points alone; NaN if only one class is there.
        sketches: quantiles of the normal points, of the anomalous ones, and of those by `overlap`.
        true_alarms: anomalous points that reach the threshold, 0 without one.
        false_alarms: normal points that reach it.
    """

    overlap: Float64[np.ndarray, " A"]
    regions: int
    auroc: float
    sketches: Float32[np.ndarray, "3 Q"]
    true_alarms: int
    false_alarms: int


def summarise(
    scores: Float32[np.ndarray, " N"],
    mask: Bool[np.ndarray, " N"],
    xyz: Float[np.ndarray, "N 3"],
    threshold: float | None = None,
) -> CloudSummary:
    """Summary of a cloud from the scores, the truth and the places of its points."""
    region = label_regions(xyz, mask)
    sizes = np.bincount(region)
    overlap = 1 / sizes[region]
    anomalous, normal = scores[mask], scores[~mask]
    alarms = (0, 0) if threshold is None else (int((anomalous >= threshold).sum()), int((normal >= threshold).sum()))
    return CloudSummary(
        overlap=overlap,
        regions=len(sizes),
        auroc=auroc(torch.from_numpy(scores), torch.from_numpy(mask)).item(),
        sketches=np.stack([quantiles(normal), quantiles(anomalous), quantiles(anomalous, overlap)]),
        true_alarms=alarms[0],
        false_alarms=alarms[1],
    )


NOTHING = CloudSummary(np.empty(0), 0, float("nan"), np.zeros((3, QUANTILES), dtype=np.float32), 0, 0)
"""Of a cloud without point truth."""
