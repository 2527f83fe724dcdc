"""Reader for tables of results: ours and published ones, with every number as it was printed.

Three forms are told apart by their columns:

    dataset, metric, setting, method, category, percent     one number a line, as in benchmarks/reported/
    dataset, method, o_auroc_percent, o_aupr_percent, ...   means only, in percent
    method, category, o_auroc, o_aupr, ...                  fractions: `metrics.csv` of a test; with `_mean` after
                                                            each metric's name, the tables that `compare` writes

A line whose category is "mean" (or "average"), or a table without categories, holds printed means. Columns clouds and
anomalous_clouds, where there are any, give the category's test clouds.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from anomaly3d.errors import InputError
from anomaly3d.metrics.result import METRICS
from anomaly3d.report.scores import Printed, Scores
from anomaly3d.report.tables import HEADINGS

_MOST_DECIMALS = 9
"""Digits of a fraction beyond these are computing noise, not what was printed [ours]."""
_ONE_A_LINE = {"metric", "category", "percent"}
_METRIC_COLUMNS = {
    f"{metric}{end}": (metric, end == "_percent") for metric in METRICS for end in ("", "_mean", "_percent")
}


@dataclass(frozen=True)
class _Number:
    """A number of a file, a fraction of one."""

    where: str
    row: dict[str, str]
    metric: str
    value: Decimal


def read_results(files: Sequence[Path]) -> list[Scores]:
    """Scores of all files together, in order of appearance.

    Raises InputError, naming file and line, for a file that isn't a table of results, a value that isn't a number in
    range, and for two values of the same cell.
    """
    numbers: dict[tuple[str, str, str, str], list[_Number]] = {}
    for file in files:
        for number in _numbers(file):
            numbers.setdefault((*_identity(number.row), number.metric), []).append(number)
    if not numbers:
        raise InputError(f"{', '.join(map(str, files))}: no numbers.")
    return [_scores(key, group) for key, group in numbers.items()]


def _numbers(file: Path) -> Iterator[_Number]:
    for line, row in _rows(file):
        for column, (metric, in_percent) in _metrics(line, row).items():
            text = row[column].strip()
            if text.lower() in ("", "nan"):
                continue
            try:
                value = Decimal(text).scaleb(-2 if in_percent else 0)  # keeps zeros at the end, unlike division
            except InvalidOperation as error:
                raise InputError(f"{line}, column {column}: '{text}' is not a number.") from error
            if not (value.is_finite() and 0 <= value <= 1):
                asked = "a percentage" if in_percent else "a fraction; percentages need a column o_auroc_percent"
                raise InputError(f"{line}, column {column}: {text} is not {asked}.")
            yield _Number(line, row, metric, value)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Lines of a file, each with its place."""
    if not file.is_file():
        raise InputError(f"{file}: no such file.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            columns = set(reader.fieldnames or ())
            if "method" not in columns or not (columns >= _ONE_A_LINE or columns & _METRIC_COLUMNS.keys()):
                raise InputError(
                    f"{file}: not a table of results. It needs the columns method, metric, category and percent; or "
                    f"method and one or more of {', '.join(METRICS)}, with _percent at the end for percentages."
                )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: not as many values as the header has columns.")
                yield where, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a CSV table in UTF-8 ({error}).") from error


def _metrics(where: str, row: dict[str, str]) -> dict[str, tuple[str, bool]]:
    """Metric, and whether it is in percent, of each column of numbers."""
    if not row.keys() >= _ONE_A_LINE:
        return {column: meaning for column, meaning in _METRIC_COLUMNS.items() if column in row}
    for metric, heading in HEADINGS.items():
        if row["metric"].strip().lower() == heading.lower():
            return {"percent": (metric, True)}
    raise InputError(f"{where}: metric '{row['metric']}'; known are {', '.join(HEADINGS.values())}.")


def _identity(row: dict[str, str]) -> tuple[str, str, str]:
    seed = [f"seed {row['seed']}"] if row.get("seed") else []
    setting = [row[name] for name in ("setting", "protocol", "split") if row.get(name)]
    return row.get("dataset", ""), ", ".join([*setting, *seed]), row["method"]


def _scores(key: tuple[str, str, str, str], numbers: list[_Number]) -> Scores:
    scores = Scores(*key)
    cells = [number for number in numbers if not _is_mean(number.row)]
    # Zeros at the end are not always printed: the longest number says how many digits the cells have.
    for number, printed in zip(cells, _printed(number.value for number in cells), strict=True):
        category = number.row["category"]
        if category in scores.cells:
            raise InputError(
                f"{number.where}: a second value for {' '.join(filter(None, key))} {category}. "
                "Check tables of different runs one at a time."
            )
        scores.cells[category] = printed
        _add_clouds(scores, number)
    scores.means = [_printed([number.value])[0] for number in numbers if _is_mean(number.row)]
    scores.seeds = max(_whole(number, "seeds", default=1) for number in numbers)
    if not scores.seeds:
        raise InputError(f"{numbers[0].where}, column seeds: 0; a number is the mean over one seed or more.")
    return scores


def _add_clouds(scores: Scores, number: _Number) -> None:
    clouds, anomalous = _whole(number, "clouds"), _whole(number, "anomalous_clouds")
    if 0 < anomalous < clouds:
        scores.clouds[number.row["category"]] = clouds - anomalous, anomalous


def _whole(number: _Number, column: str, default: int = 0) -> int:
    text = number.row.get(column, "") or str(default)
    if not text.isdecimal():
        raise InputError(f"{number.where}, column {column}: '{text}' is not a whole number.")
    return int(text)


def _is_mean(row: dict[str, str]) -> bool:
    return row.get("category", "mean").strip().lower() in ("mean", "average", "avg", "avg.")


def _printed(values: Iterable[Decimal]) -> list[Printed]:
    values = list(values)
    digits = [-int(value.as_tuple().exponent) for value in values]
    decimals = min(max([*digits, 1]), _MOST_DECIMALS)
    return [Printed(round(value.scaleb(decimals)), decimals) for value in values]
