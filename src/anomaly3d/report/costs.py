"""What the methods of a comparison cost: time and memory, as measured in their runs."""

from __future__ import annotations

from statistics import fmean

import pandas as pd

from anomaly3d.report.tables import Table

_COLUMNS = [
    *("method", "setting", "protocol", "training, s", "test, ms per cloud", "of it, ms", "multiply-adds, G per cloud"),
    "peak memory, MiB",
]
_STAGES = 3  # that are named
_FOOTER = (
    "Wall times, means over seeds; registrations that another run had made count with the time that they took there. "
    "Of it: the three stages that take most; every stage is in record.json. Multiply-adds: torch's matrix products and "
    "attention. Memory of the whole process, the largest of the runs; it lacks what such registrations needed."
)


def cost_tables(runs: pd.DataFrame, footer: str) -> list[Table]:
    """One table per data set, methods in order of appearance.

    Training is that of a seed, over all categories; test is reading, scoring and measuring, per cloud. Both are wall
    times, means over seeds, as are the stages of scoring that take most. Memory is that of the whole process, the
    largest of the runs.

    Args:
        runs: one row per run and category: method, setting, dataset, seed, protocol, category, clouds, train_seconds,
            test_seconds, stage_seconds_per_cloud, multiply_adds_per_cloud, peak_memory_mib; stages and multiply-adds
            are None in records of older versions. The rows of a unified run repeat its costs.
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
    work = [value for value in group["multiply_adds_per_cloud"].tolist() if not pd.isna(value)]
    return [
        *(method, setting, protocol, f"{training:.0f}", f"{per_cloud:.0f}", _largest_stages(group)),
        f"{_mean(work, group) / 1e9:.2f}" if len(work) == len(group) else "",
        f"{group['peak_memory_mib'].max():.0f}",
    ]


def _largest_stages(group: pd.DataFrame) -> str:
    """Means over clouds, in milliseconds; nothing where a run has no stages."""
    cells = [cell for cell in group["stage_seconds_per_cloud"].tolist() if isinstance(cell, str)]
    if len(cells) < len(group):
        return ""
    each = [_parsed(cell) for cell in cells]
    names = dict.fromkeys(name for one in each for name in one)
    means = {name: _mean([one.get(name, 0.0) for one in each], group) for name in names}
    largest = sorted(means, key=lambda name: -means[name])[:_STAGES]
    return ", ".join(f"{name} {1e3 * means[name]:.0f}" for name in largest)


def _mean(values: list[float], group: pd.DataFrame) -> float:
    """Of values per cloud, one of each row, over the clouds of all rows."""
    return fmean(values, group["clouds"].tolist())


def _parsed(stages: str) -> dict[str, float]:
    """The inverse of a mapping's text in a cell: `name value; name value`."""
    parts = (part.rpartition(" ") for part in stages.split("; ") if part)  # none where a process scored nothing
    return {name: float(value) for name, _, value in parts}
