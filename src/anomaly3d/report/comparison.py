"""Tables that set several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly3d.errors import InputError
from anomaly3d.files import write_text
from anomaly3d.metrics.result import METRICS, POINT_METRICS, largest_error, mean_interval
from anomaly3d.report.published import Published, published_mean, published_metrics, published_of
from anomaly3d.report.tables import HEADINGS, Table, percent, percent_interval

if TYPE_CHECKING:
    import pandas as pd

RUN_COLUMNS = ("method", "setting", "dataset", "seed", "protocol")

_GROUP = ["dataset", "protocol", "method", "setting"]
_CLOUDS = ["clouds", "anomalous_clouds"]
_ENDS = [f"{metric}_ci_{end}" for metric in METRICS for end in ("low", "high")]
_BOUNDS = [f"{metric}_{end}" for metric in POINT_METRICS for end in ("lower", "upper")]
_PUBLISHED = (
    "Published: what the papers report, on their data, over the same categories; difference: ours minus theirs."
)
_OPTIONAL = ["aupro", *_ENDS, *_BOUNDS, *_CLOUDS, "category_accuracy"]
"""Columns that the records of older versions lack."""


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over categories of every metric, per data set, protocol, method and setting.

    Args:
        runs: one row per run and category, with the columns method, setting, dataset, seed, protocol, category,
            o_auroc, o_aupr, p_auroc, p_aupr (fractions; NaN where undefined) and, where the runs have them, aupro,
            each metric's `_ci_low` and `_ci_high`, each point metric's `_lower` and `_upper`, clouds, anomalous_clouds
            and category_accuracy; further columns are ignored.

    Returns:
        One row per group in order of appearance: the four names, `seeds`, `categories` (the fewest that a metric of
        a seed is a mean over), each metric's `_mean`, `_std`, `_ci_low` and `_ci_high`, the certain bounds of each
        point metric's mean, `_lower` and `_upper`, the test clouds of a seed, and the category accuracy.
        The mean over categories is taken per seed; mean and sample deviation (NaN for one seed) are over seeds. The
        95 % interval is of the draw of test clouds, which seeds share, so its ends are means over seeds; deviation and
        interval are of different causes, and neither holds the other.

    Raises:
        InputError: a column is missing, or a category occurs twice in one run.
    """
    runs = _checked(runs)
    by_seed: Any = runs.groupby([*_GROUP, "seed"], sort=False)
    count = by_seed[list(METRICS)].count()
    fewest = count.where(count > 0).min(axis=1).rename("categories").reset_index()
    per_seed = by_seed[list(METRICS)].mean()
    for metric in METRICS:
        ends = [_mean_interval(rows, metric) for _, rows in by_seed]
        per_seed[[f"{metric}_ci_low", f"{metric}_ci_high"]] = ends
    per_seed[_BOUNDS] = by_seed[_BOUNDS].mean()
    for name in _CLOUDS:
        per_seed[name] = by_seed[name].sum(min_count=1)
    per_seed["category_accuracy"] = by_seed["category_accuracy"].mean()
    per_seed = per_seed.reset_index()
    means = _over_seeds(per_seed, _GROUP)
    accuracy: Any = per_seed.groupby(_GROUP, sort=False, as_index=False)["category_accuracy"]
    means = means.merge(accuracy.mean(), on=_GROUP)
    return means.merge(fewest.groupby(_GROUP, sort=False, as_index=False)["categories"].min(), on=_GROUP)


def compare_categories(runs: pd.DataFrame) -> pd.DataFrame:
    """Like `compare` with one row per category: long form, mean, deviation and interval over seeds, test clouds."""
    return _over_seeds(_checked(runs), [*_GROUP, "category"])


def comparison_tables(
    runs: pd.DataFrame, provenance: Sequence[str] = (), published: Published | None = None
) -> list[Table]:
    """One table per data set: rows are method, setting and protocol, columns the metrics' means over categories.

    O-AUROC, over few clouds the least certain, has its 95 % interval beside it, and a method that says which category a
    cloud is of how often it is right. Metrics that have `published` values
    get a column of them, on the paper's data, whatever data these runs had, and one of ours minus theirs.
    """
    published = _of_these(runs, published)
    reported = published_metrics(published, METRICS)
    categories = runs.groupby("dataset")["category"].nunique()
    covered = _covered(runs)
    tables = []
    for dataset, rows in _by_dataset(compare(runs)).items():
        most = max(row["categories"] for row in rows)
        total = categories[dataset]
        deviation = ", ± sample deviation over seeds" if any(row["seeds"] > 1 for row in rows) else ""
        footer = [f"Percent; mean over {most:.0f} of {total} categories{deviation}."]
        with_intervals = any(row["o_auroc_interval"] for row in rows)
        if with_intervals:
            footer.append("95 %: interval of the mean, for other clouds of the same categories.")
        footer += _errors(rows)
        named = any(not math.isnan(row["category_accuracy"]) for row in rows)
        footer += [_PUBLISHED] if reported else []
        footer += [
            f"{row['method']} ({row['setting']}, {row['protocol']}) has a mean over {row['categories']:.0f} categories "
            "only, which is not comparable with the others."
            for row in rows
            if row["categories"] < most
        ]
        cells = [
            [
                *(str(row[name]) for name in ("method", "setting", "protocol")),
                *map(row.get, METRICS),
                *([row["o_auroc_interval"]] if with_intervals else []),
                *([percent(row["category_accuracy"])] if named else []),
                str(row["seeds"]),
                *(cell for m in reported for cell in _published(row, m, published, covered)),
            ]
            for row in rows
        ]
        columns = ["method", "setting", "protocol", *HEADINGS.values()]
        columns += ["O-AUROC 95 %"] if with_intervals else []
        columns += ["category accuracy"] if named else []
        columns += ["seeds", *(f"{HEADINGS[m]} {what}" for m in reported for what in ("published", "difference"))]
        tables.append(Table(columns, cells, labels=3, footer=[*footer, *provenance], title=dataset))
    return tables


def category_tables(
    runs: pd.DataFrame, metric: str, provenance: Sequence[str] = (), published: Published | None = None
) -> list[Table]:
    """One table of one metric per data set: rows are categories, columns what is compared, means at the foot.

    Behind a number stands its 95 % interval, where the runs have one; behind a column those of its published values
    and of the differences, where there are any.
    """
    published = _of_these(runs, published)
    cells = _by_dataset(compare_categories(runs))
    covered = _covered(runs)
    tables = []
    for dataset, means in _by_dataset(compare(runs)).items():
        rows = {tuple(row[name] for name in [*_GROUP, "category"]): row for row in cells[dataset]}
        categories = dict.fromkeys(row["category"] for row in cells[dataset])
        columns, lines, summary = ["category"], [[str(name)] for name in categories], ["mean"]
        reported = False
        for mean in means:
            contender = tuple(mean[name] for name in _GROUP)
            mine = [rows.get((*contender, name)) for name in categories]
            _, protocol, method, setting = contender
            has_published = any(key[0] == method and key[1] in (setting, "") and key[2] == metric for key in published)
            reported |= has_published
            columns += [f"{method} ({setting}, {protocol})", *(["published", "difference"] if has_published else [])]
            for line, row in zip([*lines, summary], [*mine, mean], strict=True):
                line.append("" if row is None else _cell(row, metric))
                if has_published:
                    line.extend(("", "") if row is None else _published(row, metric, published, covered))
        footer = [
            "Percent; in brackets the 95 % interval, for other clouds."
            if any(row[f"{metric}_interval"] for row in means)
            else "Percent."
        ]
        tables.append(
            Table(
                columns=columns,
                rows=lines,
                summary=[summary],
                footer=[*footer, *([_PUBLISHED] if reported else []), *provenance],
                title=f"{dataset}: {HEADINGS[metric]}",
            )
        )
    return tables


def write_comparison(
    runs: pd.DataFrame, directory: Path | str, provenance: Sequence[str] = (), published: Published | None = None
) -> list[Path]:
    """Write the comparison as `comparison.{csv,md,tex}` and `comparison_by_category.{csv,md,tex}`; returns the paths.

    `provenance` lines (versions, commit, device) stand under every table.
    """
    directory = Path(directory)
    by_category = [table for metric in METRICS for table in category_tables(runs, metric, provenance, published)]
    tables = comparison_tables(runs, provenance, published)
    texts = {
        "comparison.csv": _with_published(compare(runs), runs, published).to_csv(index=False),
        "comparison.md": "\n".join(table.markdown() for table in tables),
        "comparison.tex": "\n".join(table.latex() for table in tables),
        "comparison_by_category.csv": _with_published(compare_categories(runs), runs, published).to_csv(index=False),
        "comparison_by_category.md": "\n".join(table.markdown() for table in by_category),
        "comparison_by_category.tex": "\n".join(table.latex() for table in by_category),
    }
    return [write_text(directory / name, text) for name, text in texts.items()]


def _checked(runs: pd.DataFrame) -> pd.DataFrame:
    key = [*RUN_COLUMNS, "category"]
    if missing := [column for column in (*key, *METRICS) if column not in (*runs.columns, *_OPTIONAL)]:
        raise InputError(f"the table of runs lacks the columns {', '.join(missing)}")
    twice = runs[runs.duplicated(key)]
    if len(twice):
        run = ", ".join(f"{name} {twice.iloc[0][name]}" for name in key)
        raise InputError(f"the table of runs has more than one row for {run}; remove the outdated one")
    return runs.reindex(columns=[*runs.columns, *(name for name in _OPTIONAL if name not in runs.columns)])


def _of_these(runs: pd.DataFrame, published: Published | None) -> Published:
    """What is published of these runs' methods."""
    methods = set(runs["method"])
    return {key: value for key, value in (published or {}).items() if key[0] in methods}


def _with_published(table: pd.DataFrame, runs: pd.DataFrame, published: Published | None) -> pd.DataFrame:
    """The table with columns `_published` and `_difference` (fractions) of each metric that has published values."""
    published, covered = _of_these(runs, published), _covered(runs)
    for metric in published_metrics(published, METRICS):
        values = [_reported(row, metric, published, covered) for row in table.to_dict("records")]
        table[f"{metric}_published"] = [math.nan if value is None else value for value in values]
        table[f"{metric}_difference"] = table[f"{metric}_mean"] - table[f"{metric}_published"]
    return table


Covered = Mapping[tuple[Any, ...], set[str]]
"""(data set, protocol, method, setting, metric) -> the categories that its mean is over."""


def _covered(runs: pd.DataFrame) -> Covered:
    found: dict[tuple[Any, ...], set[str]] = {}
    for row in runs.to_dict("records"):
        for metric in METRICS:
            if not math.isnan(row.get(metric, math.nan)):
                found.setdefault((*(row[name] for name in _GROUP), metric), set()).add(str(row["category"]))
    return found


def _reported(row: Mapping[str, Any], metric: str, published: Published, covered: Covered) -> float | None:
    """What is published of a row of `compare_categories`, or of the categories of one of `compare`."""
    contender = row["method"], row["setting"], metric
    if "category" in row:
        return published_of(published, *contender, row["category"])
    categories = covered.get((*(row[name] for name in _GROUP), metric), set())
    return published_mean(published, *contender, categories)


def _published(row: Mapping[str, Any], metric: str, published: Published, covered: Covered) -> tuple[str, str]:
    """The value published of a row, in percent, and ours minus it; nothing where none is."""
    value = _reported(row, metric, published, covered)
    if value is None:
        return "", ""
    difference = 100 * (row[f"{metric}_mean"] - value)
    return f"{100 * value:.1f}", "–" if math.isnan(difference) else f"{difference:+.1f}"


def _cell(row: Mapping[str, Any], metric: str) -> str:
    interval = row[f"{metric}_interval"]
    return f"{row[metric]} [{interval}]" if interval else row[metric]


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the point metrics' means are certain to, where they come from histograms."""
    errors = {
        metric: max(largest_error(*(row[f"{metric}_{end}"] for end in ("mean", "lower", "upper"))) for row in rows)
        for metric in POINT_METRICS
    }
    if not any(error > 0 for error in errors.values()):
        return []
    listed = ", ".join(f"{HEADINGS[metric]} {100 * error:.2g}" for metric, error in errors.items())
    return [f"Point metrics from histograms; certain bounds on the error of a mean, at most: {listed}."]


def _mean_interval(rows: pd.DataFrame, metric: str) -> tuple[float, float]:
    """Of the mean over one run's categories."""
    defined = rows[rows[metric].notna()]
    ends = zip(defined[f"{metric}_ci_low"], defined[f"{metric}_ci_high"], strict=True)
    return mean_interval(list(defined[metric]), list(ends))


def _over_seeds(runs: pd.DataFrame, group: list[str]) -> pd.DataFrame:
    statistics = {f"{m}_{name}": (m, name) for m in METRICS for name in ("mean", "std")}
    statistics |= {end: (end, "mean") for end in [*_ENDS, *_BOUNDS]} | {name: (name, "max") for name in _CLOUDS}
    grouped: Any = runs.groupby(group, sort=False)
    table = grouped.agg(seeds=("seed", "nunique"), **statistics).reset_index()
    return table.astype({name: "int64" for name in _CLOUDS if table[name].notna().all()})  # else empty, and float


def _by_dataset(table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Rows of `compare` or `compare_categories` per data set, with every metric and interval as text of its own."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        cells = {m: percent(row[f"{m}_mean"], row[f"{m}_std"]) for m in METRICS}
        for m in METRICS:
            cells[f"{m}_interval"] = percent_interval((row[f"{m}_ci_low"], row[f"{m}_ci_high"]))
        rows.setdefault(str(row["dataset"]), []).append({**row, **cells})
    return rows
