"""One figure for a whole comparison: ground truth beside the heat map of every method and setting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from anomaly3d.compare.grid import Run
from anomaly3d.report.pictures import CloudRow, HeatMap, heatmap_grid


def draw_heatmaps(runs: list[Run], target: Path) -> Path | None:
    """Draw the clouds whose point scores the runs of each column's first seed kept; None when there are none."""
    rows: dict[str, CloudRow] = {}
    heat: dict[str, dict[str, HeatMap]] = {}
    columns: dict[str, None] = {}
    first = {(run.method, run.setting): run.seed for run in reversed(runs)}
    for run in runs:
        if run.seed != first[run.method, run.setting]:
            continue
        column = f"{run.method}\n{run.setting}"
        log = json.loads((run.folder / "record.json").read_text())["log"]
        for file in sorted((run.folder / log / "point_scores").glob("*.npz")):
            kept = np.load(file)
            name = str(kept["sample_id"])
            columns.setdefault(column)
            heat.setdefault(name, {})[column] = HeatMap(kept["scores"], float(kept["object_score"]))
            rows[name] = CloudRow(Path(name).name, kept["xyz"], heat[name], kept["mask"], label=1)
    complete = [row for name, row in sorted(rows.items()) if heat[name].keys() == columns.keys()]
    if not complete:
        return None
    heatmap_grid(complete, list(columns), target)
    return target
