"""Ranking metrics as torchmetrics classes.

torchmetrics' own binary metrics pass a whole update through a sigmoid as soon as one of its scores leaves [0, 1],
which breaks the order between updates; these never change a score.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anomaly3d.metrics.functional import checked, ranking_metrics
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
