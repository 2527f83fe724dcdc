"""What the methods of a comparison cost: time and memory, as measured in their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomaly3d.report.tables import Table

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ["method", "setting", "protocol", "training, s", "test, ms per cloud", "peak memory, MiB"]
_FOOTER = (
    "Wall times, means over seeds; registrations that another run had made count with the time that they took there. "
    "Memory of the whole process, the largest of the runs; it lacks what such registrations needed."
)


def cost_tables(runs: pd.DataFrame, footer: str) -> list[Table]:
    """One table per data set, methods in order of appearance.

    Training is that of a seed, over all categories; test is reading, scoring and measuring, per cloud. Both are wall
    times, means over seeds. Memory is that of the whole process, the largest of the runs.

    Args:
        runs: one row per run and category: method, setting, dataset, seed, protocol, category, clouds, train_seconds,
            test_seconds, peak_memory_mib. The rows of a unified run repeat its costs.
        footer: a line that says where they were measured.
    """
    return [
        Table(
            _COLUMNS,
            [_row(group) for _, group in rows.groupby(["method", "setting", "protocol"], sort=False)],
            labels=3,
            footer=[_FOOTER, footer],
            title=str(dataset),
        )
        for dataset, rows in runs.groupby("dataset", sort=False)
    ]


def _row(group: pd.DataFrame) -> list[str]:
    method, setting, protocol = (str(group[name].iloc[0]) for name in ("method", "setting", "protocol"))
    each = group.drop_duplicates("seed") if setting == "unified" else group
    training = each["train_seconds"].sum() / group["seed"].nunique()
    per_cloud = 1e3 * each["test_seconds"].sum() / group["clouds"].sum()
    return [method, setting, protocol, f"{training:.0f}", f"{per_cloud:.0f}", f"{group['peak_memory_mib'].max():.0f}"]
