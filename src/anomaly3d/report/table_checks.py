"""Arithmetic that every table of results must satisfy, each check with a table of what it found.

1. A printed mean is the mean of its cells.
2. An O-AUROC is a multiple of 1/(P n) for P normal and n anomalous test clouds, or of 1/(2 P n) if scores tie.
3. An O-AUPR (average precision) is at most what the O-AUROC beside it allows.

Numbers may have been rounded or cut off; a finding holds for either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from anomaly3d.data.released_splits import category_folder, released_counts
from anomaly3d.metrics.attainable import attainable_prints, largest_ap, largest_ap_with_ties, largest_mean_ap
from anomaly3d.report.scores import Printed, Scores
from anomaly3d.report.tables import HEADINGS, Table, percent

_MOST_PAIRS, _MOST_TIED_PAIRS = 40_000, 1_000
"""Pairs of clouds for which the largest AP takes seconds, without and with ties [ours]."""
_MOST_STEPS = 10_000_000
"""Steps of an O-AUROC that are listed, so many numbers for each cell [ours]."""
_UNKNOWN = "are not known; a table may give them in columns clouds and anomalous_clouds"


def means_table(scores: Sequence[Scores]) -> Table:
    """Printed means that no numbers printed like the cells have."""
    pairs = [(entry, mean) for entry in scores if entry.cells for mean in entry.means]
    wrong = [(entry, mean) for entry, mean in pairs if not _is_mean(mean, list(entry.cells.values()))]
    rows = [
        [*_row(entry), HEADINGS[entry.metric], _percent(mean), _mean_text(entry, mean), str(len(entry.cells))]
        for entry, mean in wrong
    ]
    return Table(
        columns=["data set", "method", "setting", "metric", "printed", "mean of cells", "cells"],
        rows=rows,
        labels=4,
        footer=[f"Percent. {len(wrong)} of {len(pairs)} printed means are not the mean of their cells."],
        title="Means that are not their cells' mean",
    )


def attainable_table(scores: Sequence[Scores]) -> Table:
    """How many O-AUROC cells of each row its test clouds allow, and how many of as many random numbers they would."""
    rows: list[list[str]] = []
    notes: dict[str, None] = {}
    for entry in (entry for entry in scores if entry.metric == "o_auroc" and entry.cells):
        clouds = _clouds(entry)
        if unknown := [name for name in entry.cells if name not in clouds]:
            names = ", ".join(unknown)
            notes[f"{_dataset(entry)}: not checked are {names}, whose numbers of test clouds {_UNKNOWN}."] = None
        steps = {name: 2 * entry.seeds * normal * anomalous for name, (normal, anomalous) in clouds.items()}
        if many := [name for name in clouds if steps[name] > _MOST_STEPS and entry.cells[name].decimals > 6]:
            clouds = {name: counts for name, counts in clouds.items() if name not in many}
            notes[f"{_dataset(entry)}: not checked are {', '.join(many)}, of over {_MOST_STEPS:,} steps."] = None
        if not clouds:
            continue
        untied, tied = (_attainable(entry, clouds, per_pair) for per_pair in (1, 2))
        if untied[1] == len(clouds):
            notes[f"{_dataset(entry)}: has so many test clouds that every number is attainable."] = None
            continue
        shares = [text for count, chance in (untied, tied) for text in (str(count), f"{chance:.1f}")]
        rows.append([*_row(entry), str(len(clouds)), *shares])
    return Table(
        columns=["data set", "method", "setting", "cells", "attainable", "by chance", "with ties", "by chance"],
        rows=rows,
        labels=3,
        footer=[
            "Attainable: a multiple of 1/(P n), rounded or cut off, for P normal and n anomalous test clouds of the "
            "category; with ties: of 1/(2 P n). By chance: expected of numbers drawn evenly from all that can be "
            "printed.",
            *notes,
        ],
        title="O-AUROCs that the test clouds allow",
    )


def precision_table(scores: Sequence[Scores]) -> Table:
    """O-AUPRs above the largest average precision of a ranking with the O-AUROC beside them."""
    found = {(_row(entry), entry.metric): entry for entry in scores}
    pairs = [
        (row, *numbers)
        for (row, metric), entry in found.items()
        if metric == "o_auroc" and (row, "o_aupr") in found
        for numbers in _pairs(entry, found[row, "o_aupr"])
    ]
    rows, unchecked = [], 0
    for row, category, auroc, aupr, clouds, seeds in pairs:
        most = _most(auroc, clouds, seeds, ties=False)
        unchecked += math.isnan(most)
        if float(aupr.low) > most:
            bounds = (most, _most(auroc, clouds, seeds, ties=True))
            rows.append([*row, category, _percent(auroc), _percent(aupr), *map(percent, bounds)])
    footer = [
        f"Percent. {len(rows)} of {len(pairs) - unchecked} O-AUPRs are above the largest average precision of a "
        "ranking without ties that has the O-AUROC; with ties: the largest of any ranking. Checked are cells of known "
        "test clouds, and means where a table of a released data set has no cells."
    ]
    if unchecked:
        verb = "is" if unchecked == 1 else "are"
        footer.append(f"{unchecked} more {verb} not checked: over {_MOST_PAIRS:,} pairs of clouds take too long.")
    return Table(
        columns=["data set", "method", "setting", "category", "O-AUROC", "O-AUPR", "at most", "with ties"],
        rows=rows,
        labels=4,
        footer=footer,
        title="O-AUPRs that are too large for their O-AUROC",
    )


def _is_mean(mean: Printed, cells: list[Printed]) -> bool:
    low, high = (sum(getattr(cell, end) for cell in cells) / len(cells) for end in ("low", "high"))
    return low < mean.high and mean.low < high


def _attainable(entry: Scores, clouds: dict[str, tuple[int, int]], per_pair: int) -> tuple[int, float]:
    """Attainable cells, and how many are expected of random numbers."""
    prints = [
        (entry.cells[name], attainable_prints(per_pair * entry.seeds * normal * anomalous, entry.cells[name].decimals))
        for name, (normal, anomalous) in clouds.items()
    ]
    count = sum(bool(np.isin(cell.number, attainable)) for cell, attainable in prints)
    return count, sum(len(attainable) / (10**cell.decimals + 1) for cell, attainable in prints)


def _pairs(auroc: Scores, aupr: Scores) -> Iterator[tuple[str, Printed, Printed, list[tuple[int, int]], int]]:
    """Category (or "mean"), O-AUROC, O-AUPR, the test clouds they are means over, and the seeds."""
    for name, clouds in _clouds(auroc).items():
        if name in aupr.cells:
            yield name, auroc.cells[name], aupr.cells[name], [clouds], auroc.seeds
    released = list(released_counts(auroc.dataset).values())
    if released and not auroc.cells and not aupr.cells:
        for mean, precision in zip(auroc.means, aupr.means, strict=False):
            yield "mean", mean, precision, released, auroc.seeds


def _most(auroc: Printed, clouds: list[tuple[int, int]], seeds: int, ties: bool) -> float:
    """The largest AP with an O-AUROC printed so; NaN if that takes too long to find."""
    if max(normal * anomalous for normal, anomalous in clouds) > (_MOST_TIED_PAIRS if ties else _MOST_PAIRS):
        return math.nan
    curves = [(largest_ap_with_ties if ties else largest_ap)(*numbers) for numbers in clouds]
    if len(curves) * seeds > 1:
        return largest_mean_ap(min(1.0, float(auroc.high)), curves)
    last = len(curves[0]) - 1
    low, high = math.ceil(auroc.low * last), math.ceil(auroc.high * last)
    # The next larger AUROC where none is printed so.
    return float(curves[0][max(0, low) : max(high, low + 1)].max())


def _clouds(entry: Scores) -> dict[str, tuple[int, int]]:
    """(normal, anomalous) test clouds of the entry's categories, as far as known: the table's own, else released."""
    released = released_counts(entry.dataset)
    known = {name: entry.clouds.get(name, released.get(category_folder(name))) for name in entry.cells}
    return {name: counts for name, counts in known.items() if counts is not None}


def _row(entry: Scores) -> tuple[str, str, str]:
    return _dataset(entry), entry.method, entry.setting


def _dataset(entry: Scores) -> str:
    return entry.dataset or "–"


def _mean_text(entry: Scores, like: Printed) -> str:
    mean = sum(cell.value for cell in entry.cells.values()) / len(entry.cells)
    return _percent(Printed(round(mean * 10**like.decimals), like.decimals))


def _percent(printed: Printed) -> str:
    return f"{float(100 * printed.value):.{max(printed.decimals - 2, 0)}f}"
