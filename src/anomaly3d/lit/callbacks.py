"""What a run leaves behind: the result table, point scores for pictures, and predictions."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any
from zlib import crc32

import lightning as L
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import CloudRecord
from anomaly3d.data.io import read_points
from anomaly3d.errors import InputError
from anomaly3d.files import replacing, write_text
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.lit.record import provenance, row_facts, settings
from anomaly3d.report.tables import evaluation_table, table_console, write_evaluation
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

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


class PointScores(Callback):
    """Keeps the point scores of a few defective test clouds per category, for pictures.

    Each is `<log folder>/point_scores/<category>.<stem>.npz` with xyz (N, 3), mask (N,), scores (N,) and object_score.

    Args:
        per_category: clouds to keep; the first of each defect kind come first.
    """

    def __init__(self, per_category: int = 2) -> None:
        self.per_category = per_category
        self.chosen: set[str] = set()
        self.folder: Path | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the clouds from the index, without regard to any score."""
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, PointCloudDataModule)
        self.folder = (
            None if not trainer.loggers or (log_dir := trainer.log_dir) is None else Path(log_dir) / "point_scores"
        )
        self.chosen = {
            sample_id
            for category in data.category_names
            for sample_id in choose([r for r in data.records("test") if r.category == category], self.per_category)
        }

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: PointCloudBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the chosen clouds of this batch."""
        assert isinstance(outputs, AnomalyPrediction)
        if self.folder is None or batch.mask is None or self.chosen.isdisjoint(batch.sample_id):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = zip(
            batch.sample_id,
            batch.clouds(),
            batch.split(batch.mask),
            batch.split(outputs.point_scores),
            outputs.object_scores,
            [True] * len(batch) if batch.masked is None else batch.masked.tolist(),
            strict=True,
        )
        for name, xyz, mask, scores, object_score, masked in columns:
            if masked and name in self.chosen:
                np.savez_compressed(
                    self.folder / f"{file_stem(name)}.npz",
                    sample_id=name,
                    xyz=xyz.cpu().numpy(),
                    mask=mask.cpu().numpy(),
                    scores=scores.float().cpu().numpy(),
                    object_score=float(object_score),
                )


class PredictionFiles(Callback):
    """Writes what `predict` found: `predictions/objects.csv`, and per cloud its scores (.npy) and a coloured .ply.

    A row of the table names file and score. Where the checkpoint has thresholds, from validation, `anomalous` says
    whether the score reaches the cloud's, and `anomalous_points` what share of the points reach theirs. Row i of a
    `.npy` is the score of point i of the file, NaN where that point is not finite and was dropped; the coloured points
    are where the file has them. `record.json` says what model made them. When a cloud stops the run, table and record
    are of those that were scored before.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.folder = Path()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier run; make the folder."""
        self.rows = []
        data: PointCloudDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        named: dict[str, Path] = {}
        for record in data.records("predict"):
            if (other := named.setdefault(file_stem(record.sample_id), record.path)) != record.path:
                raise InputError(f"{record.path}: its scores would have the name of those of {other}; rename one")
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "predictions"
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: PointCloudBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the clouds of this batch."""
        from anomaly3d.report.coloured_clouds import save_coloured_ply

        assert isinstance(outputs, AnomalyPrediction)
        assert isinstance(pl_module, AnomalyModule)
        data: PointCloudDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        files = {record.sample_id: record.path for record in data.records("predict")}
        per_point = batch.split(outputs.point_scores)
        for name, scores, score in zip(batch.sample_id, per_point, outputs.object_scores, strict=True):
            # A batch has neither where a file's cloud lies nor the points that were dropped.
            points = read_points(files[name], data.reader.mesh_points)
            finite = np.isfinite(points).all(axis=1)
            rows = np.full(len(points), np.nan, dtype=np.float32)
            rows[finite] = scores.float().cpu().numpy()
            target = self.folder / f"{file_stem(name)}.npy"
            with replacing(target) as temporary:
                np.save(temporary, rows)
            save_coloured_ply(target.with_suffix(".ply"), points[finite], rows[finite])
            verdict: dict[str, Any] = {}
            if (thresholds := pl_module.thresholds) is not None:
                verdict = {
                    "anomalous": bool(score >= thresholds.object),
                    "anomalous_points": float((scores >= thresholds.point).float().mean()),
                }
            scored = {"sample_id": name, "file": str(files[name]), "object_score": float(score)}
            self.rows.append({**scored, **verdict, "point_scores": target.name})

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table of object scores, most anomalous first, and the record."""
        self._write(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """What was scored before is not lost."""
        if trainer.state.fn == TrainerFn.PREDICTING:
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.rows:
            return
        assert isinstance(module, AnomalyModule)
        rank = "" if trainer.world_size == 1 else f"_rank{trainer.global_rank}"
        table = self.folder / f"objects{rank}.csv"
        rows = pd.DataFrame(self.rows).sort_values("object_score", ascending=False)
        write_text(table, rows.to_csv(index=False))
        if trainer.is_global_zero:
            config = settings(self.folder.parent / "config.yaml" if trainer.loggers else None)
            record = {"split": "predict", **provenance(module.detector), **run_facts(trainer, module), **config}
            write_text(self.folder / "record.json", json.dumps(record, indent=2) + "\n")
        print(f"written: {table}; point scores, coloured clouds and record.json beside it")


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

    Memory is the most that training or this evaluation held, each in a process of its own or not.

    `reading and metrics` is the rest of `test_seconds`: data loaders, evaluator, files.
    """
    clouds, seconds = module.scored_clouds, dict(module.stage_seconds)
    seconds["reading and metrics"] = max(0.0, module.test_seconds - sum(seconds.values()))
    each = {name: float(f"{value / clouds:.4g}") for name, value in seconds.items()} if clouds else {}
    return {"stage_seconds_per_cloud": each, "multiply_adds_per_cloud": module.multiply_adds, **module.peak_mib}


def choose(records: list[CloudRecord], count: int) -> list[str]:
    """Sample ids of `count` defective clouds of a category, of as many kinds of defect as there are.

    Categories start at different kinds, by their names: the choice is the same whatever else is tested.
    """
    kinds: dict[str, list[str]] = {}
    for record in records:
        if record.label:
            kinds.setdefault(record.defect, []).append(record.sample_id)
    columns = [kinds[kind] for kind in sorted(kinds)]
    if columns:
        first = crc32(records[0].category.encode()) % len(columns)
        columns = columns[first:] + columns[:first]
    rows = zip_longest(*columns)
    return [sample_id for row in rows for sample_id in row if sample_id is not None][:count]


def file_stem(sample_id: str) -> str:
    """A file name for a sample: its id with the folders joined by dots."""
    return sample_id.replace("/", ".")


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Undefined metrics are null: JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
