from __future__ import annotations

import pandas as pd

from anomaly3d.report.costs import cost_tables


def test_costs_are_per_seed_and_per_cloud():
    def row(setting, seed, category, clouds, train, test, memory, stages, work):
        facts = {"method": "M", "dataset": "d", "protocol": "strict", "setting": setting, "seed": seed}
        times = {"train_seconds": train, "test_seconds": test, "peak_memory_mib": memory}
        times |= {"stage_seconds_per_cloud": stages, "multiply_adds_per_cloud": work}
        return {**facts, "category": category, "clouds": clouds, **times}

    rows = [
        # One model: both rows carry the costs of the same run, which count once.
        *(
            row("unified", seed, c, n, 100 + seed, 6, 700 + seed, None, None)
            for seed in (0, 20)
            for c, n in (("a", 10), ("b", 20))
        ),
        row("per-category", 0, "a", 10, 30, 1, 650, "reading and metrics 0.01; FPS 0.09; other 0.001", 3e9),
        row("per-category", 0, "b", 20, 40, 5, 600, "reading and metrics 0.07; kNN 0.03; GSAS 0.002", 6e9),
    ]
    (table,) = cost_tables(pd.DataFrame(rows), "a machine")
    assert table.title == "d"
    assert table.footer[-1] == "a machine"
    assert table.rows == [
        ["M", "unified", "strict", "110", "200", "", "", "720"],  # 12 s for 60 clouds
        [
            "M",
            "per-category",
            "strict",
            "70",
            "200",
            "reading and metrics 50, FPS 30, kNN 20",
            "5.00",
            "650",
        ],  # 6 s for 30 clouds
    ]
