"""What an evaluation says: one row per category, and the mean over categories."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

METRICS = ("o_auroc", "o_aupr", "p_auroc", "p_aupr", "aupro")
"""Object and point level metrics, in the order of every table."""

POINT_METRICS = METRICS[2:]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Thresholds:
    """A cloud, or a point, whose score reaches its threshold is called anomalous."""

    object: float
    point: float


@dataclass(frozen=True)
class CategoryResult:
    """Metrics of one category in [0, 1], NaN where undefined, over `clouds` test clouds with `points` points.

    Attributes:
        aupro: area under the per-region overlap up to 30 % false positive rate.
        regions: connected components of the labelled points of all clouds.
        p_auroc_per_cloud: mean over anomalous clouds of the AUROC of a single cloud's points; not `p_auroc`, which
            pools the points of all clouds.
        o_f1_max: the largest F1 over all thresholds; the threshold is chosen by the truth, so it is no result of a
            detector that has to decide. `p_f1_max` likewise, in histograms over their bins' edges.
        o_precision: at the threshold that was chosen without test data; with `o_recall`, `o_f1` and, for points,
            `p_precision`, `p_recall`, `p_f1`.
        p_auroc_lower: with `p_auroc_upper` certainly encloses the exact value; equal to it in exact evaluations. So do
            the bounds of `p_aupr` and `aupro`.
        o_auroc_ci_low: lower end of the 95 % interval over clouds, by Newcombe's method; `_ci_low` and `_ci_high` of
            the other metrics by bootstrap (`metrics/bootstrap.py`).
    """

    category: str
    o_auroc: float
    o_aupr: float
    p_auroc: float
    p_aupr: float
    aupro: float
    clouds: int
    anomalous_clouds: int
    points: int
    regions: int = 0
    p_auroc_per_cloud: float = math.nan
    o_f1_max: float = math.nan
    o_f1_max_threshold: float = math.nan
    p_f1_max: float = math.nan
    p_f1_max_threshold: float = math.nan
    o_precision: float = math.nan
    o_recall: float = math.nan
    o_f1: float = math.nan
    p_precision: float = math.nan
    p_recall: float = math.nan
    p_f1: float = math.nan
    p_auroc_lower: float = math.nan
    p_auroc_upper: float = math.nan
    p_aupr_lower: float = math.nan
    p_aupr_upper: float = math.nan
    aupro_lower: float = math.nan
    aupro_upper: float = math.nan
    o_auroc_ci_low: float = math.nan
    o_auroc_ci_high: float = math.nan
    o_aupr_ci_low: float = math.nan
    o_aupr_ci_high: float = math.nan
    p_auroc_ci_low: float = math.nan
    p_auroc_ci_high: float = math.nan
    p_aupr_ci_low: float = math.nan
    p_aupr_ci_high: float = math.nan
    aupro_ci_low: float = math.nan
    aupro_ci_high: float = math.nan

    def interval(self, metric: str) -> Interval:
        """The 95 % interval of a metric; NaN without one."""
        return getattr(self, f"{metric}_ci_low"), getattr(self, f"{metric}_ci_high")

    def largest_error(self, metric: str) -> float:
        """How far a point metric may be off."""
        return largest_error(*(getattr(self, f"{metric}{end}") for end in ("", "_lower", "_upper")))


@dataclass(frozen=True)
class EvaluationResult:
    """Result of a test run.

    Attributes:
        rows: one per category, in the data module's order, those without a cloud included.
        notes: a sentence for every metric that a category does not define and the mean therefore leaves out.
        category_accuracy: share of clouds whose category a unified model named rightly, over the clouds of categories
            it was trained on; None if the model predicts none.
        repeats: clouds that were given more than once (a distributed sampler's padding) and counted once.
        best_thresholds: thresholds of the largest F1 over the clouds and the points of all categories together; for the
            validation split to choose. None unless the evaluation is exact and both are defined.
    """

    rows: tuple[CategoryResult, ...]
    notes: tuple[str, ...] = ()
    category_accuracy: float | None = None
    repeats: int = 0
    best_thresholds: Thresholds | None = None

    @property
    def largest_error(self) -> float:
        """How far any point metric of any category may be off."""
        return max((row.largest_error(metric) for row in self.rows for metric in POINT_METRICS), default=0.0)

    @property
    def undefined(self) -> dict[str, tuple[str, ...]]:
        """For each metric the categories that its mean leaves out."""
        return {m: tuple(row.category for row in self.rows if math.isnan(getattr(row, m))) for m in METRICS}

    @property
    def mean(self) -> dict[str, float]:
        """Macro mean of each metric over the categories that define it (NaN if none does), for logging.

        Holds `category_accuracy` too where there is one.
        """
        mean = {m: self.mean_of(m) for m in METRICS}
        return mean if self.category_accuracy is None else {**mean, "category_accuracy": self.category_accuracy}

    def mean_of(self, name: str) -> float:
        """Mean of any number of `CategoryResult` over the categories that define it; NaN if none does."""
        values = [value for row in self.rows if not math.isnan(value := getattr(row, name))]
        return fmean(values) if values else math.nan

    def mean_interval(self, metric: str) -> Interval:
        """The 95 % interval of a metric's macro mean."""
        defined = [row for row in self.rows if not math.isnan(getattr(row, metric))]
        return mean_interval([getattr(row, metric) for row in defined], [row.interval(metric) for row in defined])

    def to_frame(self) -> pd.DataFrame:
        """One line per category; columns are the fields of `CategoryResult`, in that order."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(CategoryResult.__dataclass_fields__))


def largest_error(value: float, lower: float, upper: float) -> float:
    """How far a value may be from the one that its certain bounds enclose; 0 where there is none, or no bounds."""
    error = max(value - lower, upper - value)
    return 0.0 if math.isnan(error) else error


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of n independent metrics from their own: each side is the root of the summed squares over n.

    NaN if there are none, or one has no interval.
    """
    if not values:
        return math.nan, math.nan
    below = [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)]
    if any(math.isnan(end) for interval in intervals for end in interval):
        return math.nan, math.nan
    mean = fmean(values)
    return max(0.0, mean - math.hypot(*below) / len(values)), min(1.0, mean + math.hypot(*above) / len(values))
