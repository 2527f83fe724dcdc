"""What the methods of a comparison decide: F1 at a threshold that was chosen without test data, beside the best one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anomaly3d.report.tables import Table, percent

if TYPE_CHECKING:
    import pandas as pd

_VALUES = {
    "o_f1": "O-F1",
    "o_precision": "O-precision",
    "o_recall": "O-recall",
    "o_f1_max": "O-F1-max",
    "p_f1": "P-F1",
    "p_precision": "P-precision",
    "p_recall": "P-recall",
    "p_f1_max": "P-F1-max",
    "p_auroc_per_cloud": "P-AUROC per cloud",
}
_FOOTER = (
    "In percent, means over categories and seeds, of the categories that have a value. O: clouds, P: points. F1, "
    "precision and recall at the threshold that was best on validation clouds made from the training clouds; F1-max at "
    "the one that is best on the clouds of this table; where those are the validation clouds it is the same one, and "
    "says nothing of others. P-AUROC per cloud: mean over anomalous clouds "
    "of the AUROC of a single one's points, not the pooled P-AUROC."
)


def decision_tables(runs: pd.DataFrame, footer: str) -> list[Table]:
    """One table per data set, methods in order of appearance.

    Args:
        runs: one row per run and category: method, setting, dataset, protocol, seed, and the columns of
            `CategoryResult` that have to do with decisions, in [0, 1]; NaN or absent where there is none.
        footer: a line that says where they were measured.
    """
    runs = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *_VALUES])])
    tables = []
    for dataset, rows in runs.groupby("dataset", sort=False):
        groups: Any = rows.groupby(["method", "setting", "protocol"], sort=False)
        cells = [[*map(str, names), *map(percent, _means(group))] for names, group in groups]
        columns = ["method", "setting", "protocol", *_VALUES.values()]
        tables.append(Table(columns, cells, labels=3, footer=[_FOOTER, footer], title=str(dataset)))
    return tables


def _means(group: pd.DataFrame) -> list[float]:
    """Over categories per seed, then over seeds: no seed counts more because it has more rows."""
    by_seed: Any = group.groupby("seed")
    return by_seed[list(_VALUES)].mean().mean().tolist()
