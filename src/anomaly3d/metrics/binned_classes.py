"""Ranking metrics in fixed memory as torchmetrics classes: states are histograms, added up over processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from anomaly3d.errors import InputError
from anomaly3d.metrics.binned import FPR_LIMIT, Bounded, binned_aupro, binned_auroc, binned_average_precision
from anomaly3d.metrics.functional import checked
from anomaly3d.metrics.grid import Grid, grid_of, ordered_key, regrid

STATE_BYTES = 64_000_000
"""What the histograms of all categories together may take."""
_BYTES_PER_BIN = 24  # positives and negatives as int64, overlap as float64
_MOST_BINS = 2**18  # more than the cache holds are three times slower to count in
_CHUNK = 2**20  # scores at a time: temporaries stay in the cache
_NONE = 2**32  # beyond every key


def bins_per_category(categories: int) -> int:
    """The largest power of two within `STATE_BYTES`: 2^18 for up to 10 categories, 2^17 for 20, 2^16 for 40."""
    affordable = STATE_BYTES // (_BYTES_PER_BIN * max(1, categories))
    if affordable < 256:
        raise InputError(f"categories: {categories} are too many for histograms; evaluate them in several runs")
    return min(_MOST_BINS, 2 ** (affordable.bit_length() - 1))


class Histograms(NamedTuple):
    """What `ScoreHistograms` has counted, and the grid of each category."""

    positives: Int64[Tensor, "C bins"]
    negatives: Int64[Tensor, "C bins"]
    overlap: Float64[Tensor, "C bins"]
    grids: tuple[Grid, ...]


class ScoreHistograms(Metric):
    """Histograms of the anomalous and the normal scores of each category, on grids that follow the data's range.

    Bins are those of `metrics/grid.py`. As the range grows the grid is coarsened, which moves counts exactly; before
    processes are added up, all take the grid of the whole range. The result is that of one process given everything.

    State: 24 bytes per bin and category, and no more under any amount of points; a gather holds that once per process
    for a moment. Each sample must be given once: sums cannot be freed of repeats (see `Evaluator`).

    Args:
        categories: number of categories, each with its own histograms.
        bins: per category, a power of two; by default what `bins_per_category` allows.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    positives: Int64[Tensor, "C bins"]
    negatives: Int64[Tensor, "C bins"]
    overlap: Float64[Tensor, "C bins"]
    lowest: Int64[Tensor, " C"]
    highest: Int64[Tensor, " C"]

    def __init__(self, categories: int = 1, bins: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins_per_category(categories) if bins is None else bins
        if self.bins < 2 or self.bins & (self.bins - 1):
            raise InputError(f"bins={self.bins}: give a power of two, 2 or more")
        for name, dtype in (("positives", torch.int64), ("negatives", torch.int64), ("overlap", torch.float64)):
            self.add_state(name, torch.zeros(categories, self.bins, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("lowest", torch.full((categories,), _NONE), dist_reduce_fx="min")
        self.add_state("highest", torch.full((categories,), -_NONE), dist_reduce_fx="max")

    def update(
        self,
        scores: Float[Tensor, " N"],
        target: Bool[Tensor, " N"] | Int[Tensor, " N"],
        overlap: Float64[Tensor, " P"] | None = None,
        category: int = 0,
    ) -> None:
        """Add N scores of one category (any finite value, compared as float32) with their truth.

        Args:
            scores: larger is more anomalous.
            target: 1 or true is an anomaly.
            overlap: weight of each of the P anomalous samples for AUPRO, in order: 1 / (points of its region).
            category: which one.

        Raises ValueError as `ranking_metrics` does: shapes, types, NaN and infinite scores.
        """
        scores, target = checked(scores.detach().float(), target)
        if not len(scores):
            return
        extremes = ordered_key(torch.stack(scores.aminmax())).long().to(self.lowest.device)
        self._cover(category, int(extremes[0]), int(extremes[1]))
        grid = self.grid(category)
        for part, truth in zip(scores.split(_CHUNK), target.split(_CHUNK), strict=True):
            index = (ordered_key(part) >> grid.shift) - grid.first
            both = torch.bincount(index.add_(truth, alpha=self.bins), minlength=2 * self.bins).to(self.positives.device)
            self.negatives[category] += both[: self.bins]
            self.positives[category] += both[self.bins :]
        if overlap is not None:
            index = (ordered_key(scores[target]) >> grid.shift) - grid.first
            self.overlap[category].index_add_(0, index.to(self.overlap.device), overlap.to(self.overlap))

    def compute(self) -> Histograms:
        """Histograms and grids over all processes."""
        grids = tuple(self.grid(category) for category in range(len(self.lowest)))
        return Histograms(self.positives, self.negatives, self.overlap, grids)

    def grid(self, category: int = 0) -> Grid:
        """The grid of a category; for one without scores that of the score 0."""
        lowest, highest = int(self.lowest[category]), int(self.highest[category])
        return grid_of(lowest, highest, self.bins) if lowest <= highest else Grid(0, 0)

    def _cover(self, category: int, lowest: int, highest: int) -> None:
        old = self.grid(category)
        empty = bool(self.lowest[category] > self.highest[category])
        self.lowest[category] = min(lowest, int(self.lowest[category]))
        self.highest[category] = max(highest, int(self.highest[category]))
        if not empty and (new := self.grid(category)) != old:
            for state in (self.positives, self.negatives, self.overlap):
                state[category] = regrid(state[category], old, new)

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        """One grid for all processes, then torchmetrics' sums."""
        lowest = torch.stack(dist_sync_fn(self.lowest, process_group or self.process_group)).amin(0)
        highest = torch.stack(dist_sync_fn(self.highest, process_group or self.process_group)).amax(0)
        # Local states are put back after the sync: leave them as they are.
        for name in ("positives", "negatives", "overlap", "lowest", "highest"):
            setattr(self, name, getattr(self, name).clone())
        for category in (lowest <= highest).nonzero().flatten().tolist():
            self._cover(category, int(lowest[category]), int(highest[category]))
        super()._sync_dist(dist_sync_fn, process_group)


class BinnedAUROC(ScoreHistograms):
    """Area under the ROC curve in fixed memory, with bounds.

        AUROC = sum over bins of p (normal below + q / 2) / (P N),    error <= 1/2 sum over bins of p q / (P N)

    with p anomalous and q normal of P and N samples in a bin. `compute` returns `Bounded(value, lower, upper)`, each a
    float64 of shape (categories,), a scalar for one; NaN where a class is missing.

    Example:
        >>> from torch import tensor
        >>> metric = BinnedAUROC()
        >>> metric.update(tensor([-3.0, 0.2]), tensor([0, 1]))
        >>> metric.update(tensor([7.5, 0.2]), tensor([1, 0]))
        >>> metric.compute().value
        tensor(0.8750, dtype=torch.float64)
    """

    def compute(self) -> Bounded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Value and bounds per category."""
        return binned_auroc(self.positives, self.negatives)


class BinnedAveragePrecision(ScoreHistograms):
    """Average precision in fixed memory, with bounds.

        AP = 1/P sum over bins of p (TP + p) / (TP + p + FP + q)

    with p anomalous and q normal samples in a bin, TP and FP above it. Bounds as in `binned_average_precision`;
    `compute` returns `Bounded(value, lower, upper)`, each a float64 of shape (categories,), a scalar for one.

    Example:
        >>> from torch import tensor
        >>> metric = BinnedAveragePrecision()
        >>> metric.update(tensor([-3.0, 0.2, 7.5, 0.2]), tensor([0, 1, 1, 0]))
        >>> metric.compute().value
        tensor(0.8333, dtype=torch.float64)
    """

    def compute(self) -> Bounded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Value and bounds per category."""
        return binned_average_precision(self.positives, self.negatives)


class BinnedAUPRO(ScoreHistograms):
    """Area under the per-region overlap curve up to a false positive rate, in fixed memory, with bounds.

    Give `update` the weights 1 / (points of its region) of the anomalous points (`metrics/regions.py`); mathematics in
    `binned_aupro`. `compute` returns `Bounded(value, lower, upper)`, each a float64 of shape (categories,), a scalar
    for one.

    Args:
        limit: largest false positive rate.
        kwargs: as `ScoreHistograms`.

    Example:
        >>> from torch import tensor
        >>> metric = BinnedAUPRO(limit=0.5)
        >>> metric.update(tensor([3.0, 1.0, 2.0, 0.0]), tensor([1, 1, 0, 0]), tensor([0.5, 0.5]))
        >>> metric.compute().value
        tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, limit: float = FPR_LIMIT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.limit = limit

    def compute(self) -> Bounded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Value and bounds per category."""
        return binned_aupro(self.overlap, self.negatives, self.limit)
