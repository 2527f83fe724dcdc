"""The table that a test or a validation ends with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from anomaly3d.files import write_text
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.lit.record import provenance, row_facts, settings
from anomaly3d.lit.run_facts import run_facts, scoring_costs
from anomaly3d.report.tables import evaluation_table, table_console, write_evaluation

_SHOWN = ("method", "split", "setting", "protocol", "seed", "backbone_sha256", "git_commit")
"""What stands under the table."""


class ResultTable(Callback):
    """Prints the table of a test or validation run; writes it to the log folder with the record of the run.

    `metrics.csv`, `metrics.md` and `metrics.tex` hold the table, `record.json` everything that is known of the run.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the test clouds."""
        self._report(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the validation clouds, when they are the verb and not a pause in training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._report(trainer, pl_module, "validation")

    def _report(self, trainer: L.Trainer, module: L.LightningModule, split: str) -> None:
        assert isinstance(module, AnomalyModule)
        # A broadcast: every rank has to ask. Without a logger it would be a folder that other runs write to as well.
        log_dir = trainer.log_dir if trainer.loggers else None
        if not trainer.is_global_zero or module.result is None:
            return
        config = settings(None if log_dir is None else Path(log_dir) / "config.yaml")
        facts = {**provenance(module.detector), **run_facts(trainer, module), **scoring_costs(module)}
        record = {"split": split, **facts, **config}
        shown = {name: record[name] for name in _SHOWN}
        table_console().print(evaluation_table(module.result, shown).console())
        if log_dir is None:
            return
        folder = Path(log_dir) / split
        csv = write_evaluation(module.result, shown, folder, row_facts(record))[0]
        record["category_accuracy"] = module.result.category_accuracy
        record["results"] = [_without_nan(asdict(row)) for row in module.result.rows]
        write_text(folder / "record.json", json.dumps(record, indent=2) + "\n")
        print(f"written: {csv}, metrics.md, metrics.tex and record.json beside it")


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Undefined metrics are null: JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
