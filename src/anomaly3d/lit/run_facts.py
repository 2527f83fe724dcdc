"""What the record of a run has of its trainer and module: data set, thresholds, times and costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L

from anomaly3d.lit.module import AnomalyModule


def run_facts(trainer: L.Trainer, module: AnomalyModule) -> dict[str, Any]:
    """Data set, thresholds and wall times of a run; setting and seed are of the training, not of the test.

    `trained_with` is what trained, where all else of a record is of the process that tested.
    """
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "dataset": data.root.name,
        "setting": "per-category" if len(module.detector.categories) == 1 else "unified",
        **({} if module.trained_seed is None else {"seed": module.trained_seed}),
        "trained_with": module.trained_with,
        "thresholds": None if module.thresholds is None else asdict(module.thresholds),
        "train_seconds": round(module.train_seconds, 1),
        "test_seconds": round(module.test_seconds, 1),
    }


def scoring_costs(module: AnomalyModule) -> dict[str, Any]:
    """What scoring a cloud takes, in this process: seconds by stage, and multiply-adds of the first batch of a test.

    `reading and metrics` is the rest of `test_seconds`: data loaders, evaluator, files. Memory is the larger of the
    peaks of training, even if that was another process, and of this evaluation.
    """
    clouds, seconds = module.scored_clouds, dict(module.stage_seconds)
    seconds["reading and metrics"] = max(0.0, module.test_seconds - sum(seconds.values()))
    each = {name: float(f"{value / clouds:.4g}") for name, value in seconds.items()} if clouds else {}
    return {"stage_seconds_per_cloud": each, "multiply_adds_per_cloud": module.multiply_adds, **module.peak_mib}
