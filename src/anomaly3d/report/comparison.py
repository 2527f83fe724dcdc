"""Tables that set several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly3d.errors import InputError
from anomaly3d.metrics.result import METRICS
from anomaly3d.report.files import write_text
from anomaly3d.report.tables import HEADINGS, Table, percent

if TYPE_CHECKING:
    import pandas as pd

RUN_COLUMNS = ("method", "setting", "dataset", "seed", "protocol")
Published = Mapping[str, Mapping[str, float]]
"""What papers report, in percent: method -> metric -> value."""

_GROUP = ["dataset", "protocol", "method", "setting"]


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean over categories of every metric, per data set, protocol, method and setting.

    Args:
        runs: one row per run and category, with the columns method, setting, dataset, seed, protocol, category,
            o_auroc, o_aupr, p_auroc, p_aupr (fractions; NaN where undefined); further columns are ignored.

    Returns:
        One row per group in order of appearance: the four names, `seeds`, `categories` (the fewest that a metric of
        a seed is a mean over) and each metric's `_mean` and `_std`. The mean over categories is taken per seed;
        mean and sample deviation (NaN for one seed) are over seeds.

    Raises:
        InputError: a column is missing, or a category occurs twice in one run.
    """
    by_seed: Any = _checked(runs).groupby([*_GROUP, "seed"], sort=False)[list(METRICS)]
    count = by_seed.count()
    fewest = count.where(count > 0).min(axis=1).rename("categories").reset_index()
    means = _over_seeds(by_seed.mean().reset_index(), _GROUP)
    return means.merge(fewest.groupby(_GROUP, sort=False, as_index=False)["categories"].min(), on=_GROUP)


def compare_categories(runs: pd.DataFrame) -> pd.DataFrame:
    """Like `compare` with one row per category: long form, mean and deviation over seeds."""
    return _over_seeds(_checked(runs), [*_GROUP, "category"])


def comparison_tables(
    runs: pd.DataFrame, provenance: Sequence[str] = (), published: Published | None = None
) -> list[Table]:
    """One table per data set: rows are method, setting and protocol, columns the metrics' means over categories.

    Metrics that have `published` values get a column of them: on the paper's data, whatever data these runs had.
    """
    published = published or {}
    reported = [m for m in METRICS if any(m in values for values in published.values())]
    categories = runs.groupby("dataset")["category"].nunique()
    tables = []
    for dataset, rows in _by_dataset(compare(runs)).items():
        most = max(row["categories"] for row in rows)
        total = categories[dataset]
        deviation = ", ± sample deviation over seeds" if any(row["seeds"] > 1 for row in rows) else ""
        footer = [f"Percent; mean over {most:.0f} of {total} categories{deviation}."]
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
                str(row["seeds"]),
                *(_published(published.get(row["method"], {}).get(m)) for m in reported),
            ]
            for row in rows
        ]
        columns = ["method", "setting", "protocol", *HEADINGS.values(), "seeds"]
        columns += [f"{HEADINGS[m]} published" for m in reported]
        tables.append(Table(columns, cells, labels=3, footer=[*footer, *provenance], title=dataset))
    return tables


def category_tables(runs: pd.DataFrame, metric: str, provenance: Sequence[str] = ()) -> list[Table]:
    """One table of one metric per data set: rows are categories, columns what is compared, means at the foot."""
    cells = _by_dataset(compare_categories(runs))
    tables = []
    for dataset, means in _by_dataset(compare(runs)).items():
        contenders = [tuple(row[name] for name in _GROUP) for row in means]
        value = {(*(row[name] for name in _GROUP), row["category"]): row[metric] for row in cells[dataset]}
        categories = dict.fromkeys(row["category"] for row in cells[dataset])
        tables.append(
            Table(
                columns=[
                    "category",
                    *(f"{method} ({setting}, {protocol})" for _, protocol, method, setting in contenders),
                ],
                rows=[[str(name), *(value.get((*c, name), "") for c in contenders)] for name in categories],
                summary=[["mean", *(row[metric] for row in means)]],
                footer=["Percent.", *provenance],
                title=f"{dataset}: {HEADINGS[metric]}",
            )
        )
    return tables


def write_comparison(
    runs: pd.DataFrame, directory: Path | str, provenance: Sequence[str] = (), published: Published | None = None
) -> list[Path]:
    """Write the comparison as `comparison.{csv,md}` and `comparison_by_category.{csv,md}`; returns the paths.

    `provenance` lines (versions, commit, device) stand under every table.
    """
    directory = Path(directory)
    by_category = [table for metric in METRICS for table in category_tables(runs, metric, provenance)]
    texts = {
        "comparison.csv": compare(runs).to_csv(index=False),
        "comparison.md": "\n".join(table.markdown() for table in comparison_tables(runs, provenance, published)),
        "comparison_by_category.csv": compare_categories(runs).to_csv(index=False),
        "comparison_by_category.md": "\n".join(table.markdown() for table in by_category),
    }
    return [write_text(directory / name, text) for name, text in texts.items()]


def _checked(runs: pd.DataFrame) -> pd.DataFrame:
    key = [*RUN_COLUMNS, "category"]
    if missing := [column for column in (*key, *METRICS) if column not in runs.columns]:
        raise InputError(f"the table of runs lacks the columns {', '.join(missing)}")
    twice = runs[runs.duplicated(key)]
    if len(twice):
        run = ", ".join(f"{name} {twice.iloc[0][name]}" for name in key)
        raise InputError(f"the table of runs has more than one row for {run}; remove the outdated one")
    return runs


def _published(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _over_seeds(runs: pd.DataFrame, group: list[str]) -> pd.DataFrame:
    statistics = {f"{m}_{name}": (m, name) for m in METRICS for name in ("mean", "std")}
    grouped: Any = runs.groupby(group, sort=False)
    return grouped.agg(seeds=("seed", "nunique"), **statistics).reset_index()


def _by_dataset(table: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Rows of `compare` or `compare_categories` per data set, with every metric as the text of its cell."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_dict("records"):
        cells = {m: percent(row[f"{m}_mean"], row[f"{m}_std"]) for m in METRICS}
        rows.setdefault(str(row["dataset"]), []).append({**row, **cells})
    return rows
