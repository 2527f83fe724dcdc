"""Ranking metrics in fixed memory as torchmetrics classes: states are histograms, added up over processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int, Int8, Int64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from anomaly3d.errors import InputError, check_range
from anomaly3d.metrics.binned import (
    FPR_LIMIT,
    Bounded,
    F1Max,
    binned_aupro,
    binned_auroc,
    binned_average_precision,
    binned_f1_max,
)
from anomaly3d.metrics.functional import check_overlap, checked
from anomaly3d.metrics.grid import CELLS, MOST, Grid

STATE_BYTES = 64_000_000
"""What the histograms of all categories together may take."""
_BYTES_PER_BIN = 24  # positives and negatives as int64, overlap as float64
_MOST_BINS = 2**18  # more than the cache holds are three times slower to count in
_CHUNK = 2**17  # scores at a time: temporaries stay in the cache


def bins_per_category(categories: int) -> int:
    """As many as `STATE_BYTES` affords: 262,144 for up to 10 categories, 65,983 for 40."""
    affordable = (STATE_BYTES // max(1, categories) - CELLS) // _BYTES_PER_BIN
    if affordable < CELLS:
        raise InputError(f"categories: {categories} are too many for histograms; evaluate them in several runs")
    return min(_MOST_BINS, affordable)


_COUNTS = ("positives", "negatives", "overlap")
States = dict[str, Tensor]
"""Of `ScoreHistograms`: those of `_COUNTS`, and `level`."""


class Histograms(NamedTuple):
    """What `ScoreHistograms` has counted, and the grid of each category."""

    positives: Int64[Tensor, "C bins"]
    negatives: Int64[Tensor, "C bins"]
    overlap: Float64[Tensor, "C bins"]
    grids: tuple[Grid, ...]


class ScoreHistograms(Metric):
    """Histograms of the anomalous and the normal scores of each category, fine where the scores are.

    The grid (`metrics/grid.py`) covers every float. A cell that is met for the first time is cut into bins, once: half
    of the bins go to all such cells alike, a quarter each by their shares of the update's normal and anomalous scores;
    each update may use half of the bins that are left. Before states are added up (of processes, by `merge_state`, or
    by `forward`, which counts a batch alone), all take the coarser of their grids, so that every process gets the same
    sums. The order of updates and their distribution over processes decide the grid, and move values within the bounds;
    the order of the scores in an update changes nothing.

    State: 24 bytes per bin and 16 kB per category, under any amount of points; a gather holds that once per process for
    a moment. Each sample must be given once: sums cannot be freed of repeats (see `Evaluator`).

    Args:
        categories: number of categories, each with its own histograms.
        bins: per category, at least 16,384; by default what `bins_per_category` allows.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    positives: Int64[Tensor, "C bins"]
    negatives: Int64[Tensor, "C bins"]
    overlap: Float64[Tensor, "C bins"]
    level: Int8[Tensor, "C CELLS"]

    def __init__(self, categories: int = 1, bins: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins_per_category(categories) if bins is None else bins
        if self.bins < CELLS:
            raise InputError(f"bins={self.bins}: give {CELLS} or more")
        for name, dtype in zip(_COUNTS, (torch.int64, torch.int64, torch.float64), strict=True):
            self.add_state(name, torch.zeros(categories, self.bins, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("level", torch.zeros(categories, CELLS, dtype=torch.int8), dist_reduce_fx="min")

    def update(
        self,
        scores: Float[Tensor, " N"],
        target: Bool[Tensor, " N"] | Int[Tensor, " N"],
        overlap: Float64[Tensor, " A"] | None = None,
        category: int = 0,
    ) -> None:
        """Add N scores of one category (any finite value, compared as float32) with their truth.

        Args:
            scores: larger is more anomalous.
            target: 1 or true is an anomaly.
            overlap: weight of each of the A anomalous samples for AUPRO, in order: 1 / (points of its region).
            category: which one.

        Raises ValueError as `ranking_metrics` does (shapes, types, NaN and infinite scores), for a category that there
        is not, and for weights that are not one positive number for each anomalous sample. Nothing is counted then.
        """
        if not 0 <= category < len(self.level):
            raise ValueError(f"category {category}: there are {len(self.level)}, counted from 0")
        scores = scores.detach()
        scores, target = checked(scores.float() if scores.is_floating_point() else scores, target)
        if overlap is not None:
            check_overlap(overlap, target)
        if not len(scores):
            return
        scores, target = scores.to(self.positives.device), target.to(self.positives.device)
        self._refine(category, scores, target)
        grid = Grid(self.level[category])
        negatives, positives = _counts(grid, scores, target, self.bins)
        self.negatives[category] += negatives
        self.positives[category] += positives
        if overlap is not None:
            self.overlap[category].index_add_(0, grid.index(scores[target]), overlap.to(self.overlap))

    def compute(self) -> Histograms:
        """Histograms and grids over all processes."""
        return Histograms(self.positives, self.negatives, self.overlap, tuple(Grid(level) for level in self.level))

    def _refine(self, category: int, scores: Tensor, target: Tensor) -> None:
        """Cut the cells that these scores are the first in."""
        grid = Grid(self.level[category])
        room = (self.bins - grid.bins) // 2
        if not room:
            return
        parts = _counts(Grid(torch.zeros_like(grid.level)), scores, target, CELLS)
        share = torch.stack([part / part.sum() for part in parts if part.any()]).mean(0)
        free = (share > 0) & (grid.cell_counts(self.positives[category] + self.negatives[category]) == 0)
        if free.any():
            # Half of it alike: a cell that few of the first scores are in may be where most later ones are.
            _take(self._states, category, grid.refined(free, (share + 1 / free.sum()) / 2, room))

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        """One grid for both states, then torchmetrics' sums; `forward` and `merge_state` come here."""
        states = self._states
        for name, state in states.items():
            if name not in incoming_state or incoming_state[name].shape != state.shape:
                raise InputError(f"{name}: merge histograms of as many categories and bins, here {self.bins}")
        level = _common_level(torch.stack([_wanted_level(states), _wanted_level(incoming_state)]), self.bins)
        self._set_states(_moved(states, level))
        super()._reduce_states(_moved(incoming_state, level))
        self._computed = None  # torchmetrics keeps the value of before a merge

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        """One grid for all processes, then torchmetrics' sums."""
        wanted = dist_sync_fn(_wanted_level(self._states), process_group or self.process_group)
        self._set_states(_moved(self._states, _common_level(torch.stack(wanted), self.bins)))
        super()._sync_dist(dist_sync_fn, process_group)

    @property
    def _states(self) -> States:
        return {name: getattr(self, name) for name in (*_COUNTS, "level")}

    def _set_states(self, states: States) -> None:
        for name, state in states.items():
            setattr(self, name, state)


def _wanted_level(states: States) -> Int8[Tensor, "C CELLS"]:
    """Levels of the cells that hold counts, and MOST + 1 for empty ones: these may be cut in any way."""
    counts = states["positives"] + states["negatives"]
    used = torch.stack([Grid(level).cell_counts(row) > 0 for level, row in zip(states["level"], counts, strict=True)])
    return torch.where(used, states["level"], MOST + 1)


def _common_level(wanted: Int8[Tensor, "S C CELLS"], bins: int) -> Int8[Tensor, "C CELLS"]:
    """Levels of the finest grids of at most so many bins that all S states can move to."""
    coarser = wanted.amin(0)
    coarser = torch.where(coarser > MOST, 0, coarser).to(torch.int8)
    return torch.stack([Grid(level).shrunk(bins).level for level in coarser])


def _moved(states: States, level: Int8[Tensor, "C CELLS"]) -> States:
    """A copy of the states on other grids; the states themselves may be another's, or be put back after a sync."""
    moved = {name: state.clone() for name, state in states.items()}
    for category, row in enumerate(level):
        _take(moved, category, Grid(row))
    return moved


def _take(states: States, category: int, new: Grid) -> None:
    """Change a category's grid, in place."""
    old = Grid(states["level"][category].clone())
    if torch.equal(old.level, new.level):
        return
    for name in _COUNTS:
        if states[name][category].any():
            states[name][category] = old.move(states[name][category], new)
    states["level"][category] = new.level


def _counts(grid: Grid, scores: Tensor, target: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Normal and anomalous scores of each bin."""
    counts = torch.zeros(2 * bins, dtype=torch.int64, device=scores.device)
    for part, truth in zip(scores.split(_CHUNK), target.split(_CHUNK), strict=True):
        counts += torch.bincount(grid.index(part).add_(truth, alpha=bins), minlength=2 * bins)
    return counts[:bins], counts[bins:]


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

    `update` needs the weights 1 / (points of its region) of the anomalous points (`metrics/regions.py`); mathematics in
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
        check_range(1e-6, 1, limit=limit)
        self.limit = limit

    def update(
        self,
        scores: Float[Tensor, " N"],
        target: Bool[Tensor, " N"] | Int[Tensor, " N"],
        overlap: Float64[Tensor, " A"] | None = None,
        category: int = 0,
    ) -> None:
        """As `ScoreHistograms.update`, with weights where there is an anomalous sample."""
        if overlap is None and bool(target.any()):
            raise ValueError("overlap: AUPRO needs a weight for each anomalous sample")
        super().update(scores, target, overlap, category)

    def compute(self) -> Bounded:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Value and bounds per category."""
        return binned_aupro(self.overlap, self.negatives, self.limit)


class BinnedF1Max(ScoreHistograms):
    """The largest F1 of any threshold in fixed memory, with a bound.

    `compute` returns `F1Max(value, bin, upper)`, each of shape (categories,): the largest F1 with a bin's lower edge as
    threshold, that bin, and what the F1 of no threshold exceeds.

    Example:
        >>> from torch import tensor
        >>> metric = BinnedF1Max()
        >>> metric.update(tensor([-3.0, 0.2, 7.5, 0.2]), tensor([0, 1, 1, 0]))
        >>> metric.compute().value
        tensor(0.8000, dtype=torch.float64)
    """

    def compute(self) -> F1Max:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Value, bin and bound per category."""
        return binned_f1_max(self.positives, self.negatives)
