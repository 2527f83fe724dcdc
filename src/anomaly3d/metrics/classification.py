"""Ranking metrics as torchmetrics classes.

torchmetrics' own binary metrics pass a whole update through a sigmoid as soon as one of its scores leaves [0, 1],
which breaks the order between updates; these never change a score.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torchmetrics import Metric

from anomaly3d.errors import check_range
from anomaly3d.metrics.binned import FPR_LIMIT, binned_aupro, binned_f1_max, tied_bins
from anomaly3d.metrics.functional import auroc, check_overlap, checked, ranking_metrics
from anomaly3d.metrics.states import ListStateMetric


class _RankingMetric(ListStateMetric):
    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    scores: list[Tensor] | Tensor
    target: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_list_state("scores", torch.float64)
        self.add_list_state("target", torch.bool)

    def update(self, scores: Float[Tensor, " N"], target: Bool[Tensor, " N"] | Int[Tensor, " N"]) -> None:
        """Add N scores (floating point of any precision, finite) with their truth (1 or true is an anomaly)."""
        scores, target = checked(scores, target)
        self.append(scores=scores, target=target)


class AUROC(_RankingMetric):
    """Exact area under the ROC curve of a score without bounds.

    The probability that an anomaly scores higher than a normal sample, a tie counting one half. NaN while one of the
    two classes is missing. States grow by 9 bytes per score and are gathered over processes; repeated samples count
    as often as they were given (`Evaluator` removes them).

    Example:
        >>> from torch import tensor
        >>> metric = AUROC()
        >>> metric.update(tensor([-3.0, 0.2]), tensor([0, 1]))
        >>> metric.update(tensor([7.5, 0.2]), tensor([1, 0]))
        >>> metric.compute()
        tensor(0.8750, dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Float64 scalar in [0, 1], or NaN."""
        return ranking_metrics(self.concatenated("scores"), self.concatenated("target")).auroc


class AveragePrecision(_RankingMetric):
    """Exact average precision (AUPR) of a score without bounds.

    The sum over distinct thresholds of the gain in recall times the precision, without interpolation. NaN while one
    of the two classes is missing. States as in `AUROC`.

    Example:
        >>> from torch import tensor
        >>> metric = AveragePrecision()
        >>> metric.update(tensor([-3.0, 0.2]), tensor([0, 1]))
        >>> metric.update(tensor([7.5, 0.2]), tensor([1, 0]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Float64 scalar in [0, 1], or NaN."""
        return ranking_metrics(self.concatenated("scores"), self.concatenated("target")).average_precision


class F1Max(_RankingMetric):
    """The largest F1 of any threshold that is one of the scores: `score >= threshold` is called an anomaly.

    The threshold is chosen by the truth, so it is no result of a detector that has to decide. NaN while one of the two
    classes is missing. States as in `AUROC`.

    Example:
        >>> from torch import tensor
        >>> metric = F1Max()
        >>> metric.update(tensor([-3.0, 0.2, 7.5, 0.2]), tensor([0, 1, 1, 0]))
        >>> metric.compute()
        tensor(0.8000, dtype=torch.float64)
    """

    def compute(self) -> Float[Tensor, ""]:
        """Float64 scalar in [0, 1], or NaN."""
        bins = tied_bins(self.concatenated("scores"), self.concatenated("target"))
        return binned_f1_max(bins.positives, bins.negatives).value


class AUPRO(_RankingMetric):
    """Area under the per-region overlap curve up to a false positive rate, exact (`binned.binned_aupro`).

    States as in `AUROC`, and 8 bytes more per anomalous sample.

    Args:
        limit: largest false positive rate.
        kwargs: as torchmetrics' `Metric`.

    Example:
        >>> from torch import tensor
        >>> metric = AUPRO(limit=0.5)
        >>> metric.update(tensor([3.0, 1.0, 2.0, 0.0]), tensor([1, 1, 0, 0]), tensor([0.5, 0.5]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    overlap: list[Tensor] | Tensor

    def __init__(self, limit: float = FPR_LIMIT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range(1e-6, 1, limit=limit)
        self.limit = limit
        self.add_list_state("overlap", torch.float64)

    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        scores: Float[Tensor, " N"],
        target: Bool[Tensor, " N"] | Int[Tensor, " N"],
        overlap: Float64[Tensor, " A"],
    ) -> None:
        """Add N scores with their truth, and the weight 1 / (points of its region) of each of the A anomalous ones."""
        scores, target = checked(scores, target)
        check_overlap(overlap, target)
        super().update(scores, target)
        self.append(overlap=overlap)

    def compute(self) -> Float[Tensor, ""]:
        """Float64 scalar in [0, 1], or NaN."""
        bins = tied_bins(*(self.concatenated(name) for name in ("scores", "target", "overlap")))
        return binned_aupro(bins.weight, bins.negatives, self.limit).value


class PerCloudAUROC(Metric):
    """Mean over clouds of the AUROC of a single cloud's points; not that of all points pooled, which is `AUROC`.

    A cloud with points of one class only has none, and is left out. NaN if all are.

    Example:
        >>> from torch import tensor
        >>> metric = PerCloudAUROC()
        >>> metric.update(tensor([0.1, 0.9]), tensor([0, 1]))
        >>> metric.update(tensor([5.0, 4.0, 3.0]), tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    clouds: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clouds", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Float[Tensor, " N"], target: Bool[Tensor, " N"] | Int[Tensor, " N"]) -> None:
        """Add one cloud: the scores of its points, and their truth."""
        value = auroc(scores, target)
        if not value.isnan():
            self.total += value.to(self.total)
            self.clouds += 1

    def compute(self) -> Float[Tensor, ""]:
        """Float64 scalar in [0, 1], or NaN."""
        return self.total / self.clouds
