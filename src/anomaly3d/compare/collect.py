"""The records of a grid's runs as rows of tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from anomaly3d.compare.grid import Run
from anomaly3d.lit.record import row_facts
from anomaly3d.report.comparison import compare


def collect(runs: list[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Rows, one per run and category, with metrics in [0, 1]; and lines that say where they come from."""
    records = [json.loads((run.folder / "record.json").read_text()) for run in runs]
    rows = [
        # The row's names are the grid's: several may be of one class of detector.
        {**row_facts(record), **_names(run), **_numbers(result)}
        for run, record in zip(runs, records, strict=True)
        for result in record["results"]
    ]
    return pd.DataFrame(rows), provenance_lines(runs, records)


def _numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """A category's results; undefined ones, which JSON has as null, are NaN also where no run defines one."""
    return {name: math.nan if value is None else value for name, value in result.items()}


def _names(run: Run) -> dict[str, Any]:
    names = {"method": run.method, "setting": run.setting, "seed": run.seed}
    return names | {"dataset": run.dataset} if run.dataset else names


def ranked(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of the method with the largest mean first; those that are level stay in order, undefined means last."""
    means = {}
    for row in compare(rows).to_dict("records"):
        means.setdefault(row["method"], []).append(row[f"{metric}_mean"])
    level = {method: -math.inf if math.isnan(mean := fmean(values)) else mean for method, values in means.items()}
    best_first = sorted(level, key=lambda method: -level[method])
    place = {method: number for number, method in enumerate(best_first)}
    return rows.sort_values("method", key=lambda names: names.map(place), kind="stable", ignore_index=True)


def provenance_lines(runs: list[Run], records: list[dict[str, Any]]) -> list[str]:
    """Backbone, commit and machine of a comparison, and where the rest is.

    No wall times: they differ from one execution to the next, and the tables must not.
    """
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        mine = [record for run, record in zip(runs, records, strict=True) if run.method == method]
        hashes = ", ".join(sorted({record["backbone_sha256"][:12] for record in mine if record["backbone_sha256"]}))
        count = f"{len(mine)} runs" if len(mine) > 1 else "1 run"
        lines.append(f"{method}: {count}" + (f", backbone sha256 {hashes}." if hashes else "."))
    if runs[0].split == "validation":
        lines.append("Validation clouds, made from training clouds; no test cloud was read.")
    origins: dict[str, list[str]] = {}
    for run, record in zip(runs, records, strict=True):
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        origin = f"Commit {record['git_commit']}; {record['device']}; {versions}"
        origins.setdefault(origin, []).append(run.method)
    for origin, methods in origins.items():
        whose = "" if len(origins) == 1 else f"{', '.join(dict.fromkeys(methods))}: {len(methods)} of the runs: "
        lines.append(f"{whose}{origin}.")
    elsewhere = (
        "Times and memory: costs.md; F1 at a threshold chosen without test data: decisions.md; settings of every run: "
        "runs.csv, runs/**/record.json."
    )
    return [*lines, elsewhere]
