from __future__ import annotations

import math

import pandas as pd

from anomaly3d.report.decisions import decision_tables


def test_decisions_are_means_over_categories_then_seeds():
    def row(method, seed, category, **values):
        facts = {"method": method, "dataset": "d", "protocol": "strict", "setting": "unified", "seed": seed}
        return {**facts, "category": category, **values}

    rows = [
        row("A", 0, "a", o_f1=0.2, p_f1_max=0.5),
        row("A", 0, "b", o_f1=0.6, p_f1_max=math.nan),  # a category without masks
        row("A", 1, "a", o_f1=0.8, p_f1_max=0.7),
        row("B", 0, "a", o_f1=math.nan, p_f1_max=0.1),  # no thresholds
    ]
    (table,) = decision_tables(pd.DataFrame(rows), "a machine")
    assert table.footer[-1] == "a machine"
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["method"] for row in cells] == ["A", "B"]
    assert (cells[0]["O-F1"], cells[0]["P-F1-max"]) == ("60.0", "60.0")  # (40 + 80) / 2, (50 + 70) / 2
    assert (cells[1]["O-F1"], cells[1]["P-F1-max"]) == ("–", "10.0")
    assert cells[0]["O-recall"] == "–"  # a column that old records lack
