"""What an evaluation says: one row per category, and the mean over categories."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("o_auroc", "o_aupr", "p_auroc", "p_aupr")
"""Object and point level metrics, in the order of every table."""


@dataclass(frozen=True)
class CategoryResult:
    """Metrics of one category in [0, 1], NaN where undefined, over `clouds` test clouds with `points` points."""

    category: str
    o_auroc: float
    o_aupr: float
    p_auroc: float
    p_aupr: float
    clouds: int
    anomalous_clouds: int
    points: int


@dataclass(frozen=True)
class EvaluationResult:
    """Result of a test run.

    Attributes:
        rows: one per category, in the data module's order, those without a cloud included.
        notes: a sentence for every metric that a category does not define and the mean therefore leaves out.
        category_accuracy: share of clouds whose category a unified model named rightly, over the clouds of categories
            it was trained on; None if the model predicts none.
        repeats: clouds that were given more than once (a distributed sampler's padding) and counted once.
    """

    rows: tuple[CategoryResult, ...]
    notes: tuple[str, ...] = ()
    category_accuracy: float | None = None
    repeats: int = 0

    @property
    def undefined(self) -> dict[str, tuple[str, ...]]:
        """For each metric the categories that its mean leaves out."""
        return {m: tuple(row.category for row in self.rows if math.isnan(getattr(row, m))) for m in METRICS}

    @property
    def mean(self) -> dict[str, float]:
        """Macro mean of each metric over the categories that define it (NaN if none does), for logging.

        Holds `category_accuracy` too where there is one.
        """
        defined = {m: [v for row in self.rows if not math.isnan(v := getattr(row, m))] for m in METRICS}
        mean = {m: fmean(values) if values else math.nan for m, values in defined.items()}
        return mean if self.category_accuracy is None else {**mean, "category_accuracy": self.category_accuracy}

    def to_frame(self) -> pd.DataFrame:
        """One line per category; columns are the fields of `CategoryResult`, in that order."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(CategoryResult.__dataclass_fields__))
