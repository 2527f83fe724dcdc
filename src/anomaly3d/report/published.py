"""What papers report, to stand beside our own numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from anomaly3d.data.released_splits import category_folder
from anomaly3d.errors import InputError
from anomaly3d.report.results_csv import read_results

MEAN = "mean"
"""In place of a category: what a table prints as the mean of its cells."""
STATED = "stated mean"
"""Likewise: what a user states, whatever the tables say."""

Published = Mapping[tuple[str, str, str, str], float]
"""(method, setting, metric, category, MEAN or STATED) -> fraction; an empty setting stands for every one."""


@dataclass(frozen=True)
class Reported:
    """Tables of published results.

    Args:
        files: as in `benchmarks/reported/`; methods are told by their names in these tables.
        dataset: name, in these tables, of the data set that was run.
    """

    files: list[Path]
    dataset: str


def read_published(reported: Reported) -> dict[tuple[str, str, str, str], float]:
    """Cells and printed means of one data set.

    Raises:
        InputError: a file is no table of results, or has nothing of the data set.
    """
    scores = read_results(reported.files)
    known = list(dict.fromkeys(entry.dataset for entry in scores))
    if reported.dataset not in known:
        raise InputError(f"reported: no data set '{reported.dataset}' in the tables; choose from {', '.join(known)}")
    found: dict[tuple[str, str, str, str], float] = {}
    for entry in (entry for entry in scores if entry.dataset == reported.dataset):
        row = entry.method, entry.setting, entry.metric
        found |= {(*row, category_folder(name)): float(cell.value) for name, cell in entry.cells.items()}
        if entry.means:
            found[*row, MEAN] = float(entry.means[0].value)
    return found


def published_of(published: Published, method: object, setting: object, metric: str, category: object) -> float | None:
    """The number published of a category, if there is one of this setting or one that names no setting."""
    keys = ((str(method), given, metric, str(category)) for given in (str(setting), ""))
    return next((published[key] for key in keys if key in published), None)


def published_mean(
    published: Published, method: object, setting: object, metric: str, categories: Collection[str]
) -> float | None:
    """The published mean over the same categories; None where there is none.

    What is stated goes first; then the printed mean, where ours are just the published categories or none of these is
    known; else the mean of the published cells of ours, unless one has none.
    """
    if (stated := published_of(published, method, setting, metric, STATED)) is not None:
        return stated
    for given in (str(setting), "") if categories else ():
        cells = {key[3] for key in published if key[:3] == (method, given, metric)} - {MEAN, STATED}
        mean = published.get((str(method), given, metric, MEAN))
        if mean is not None and (not cells or cells == set(categories)):
            return mean
        if cells >= set(categories):
            return fmean(published[str(method), given, metric, name] for name in categories)
    return None


def published_metrics(published: Published, metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that any number is published of."""
    return [metric for metric in metrics if any(key[2] == metric for key in published)]
