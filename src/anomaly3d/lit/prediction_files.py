"""The files that `predict` leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import file_stem
from anomaly3d.data.io import read_points
from anomaly3d.errors import InputError
from anomaly3d.files import replacing, write_text
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.lit.record import provenance, settings
from anomaly3d.lit.run_facts import run_facts
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


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
        self.files: dict[str, Path] = {}  # by `file_stem`
        self.folder = Path()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier run; make the folder."""
        self.rows, self.files = [], {}
        data: PointCloudDataModule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        for record in data.records("predict"):
            if (other := self.files.setdefault(file_stem(record.sample_id), record.path)) != record.path:
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
        per_point = batch.split(outputs.point_scores)
        for name, scores, score in zip(batch.sample_id, per_point, outputs.object_scores, strict=True):
            stem = file_stem(name)
            # A batch has neither where a file's cloud lies nor the points that were dropped.
            points = read_points(self.files[stem], data.reader.mesh_points)
            finite = np.isfinite(points).all(axis=1)
            rows = np.full(len(points), np.nan, dtype=np.float32)
            rows[finite] = scores.float().cpu().numpy()
            target = self.folder / f"{stem}.npy"
            with replacing(target) as temporary:
                np.save(temporary, rows)
            save_coloured_ply(target.with_suffix(".ply"), points[finite], rows[finite])
            verdict: dict[str, Any] = {}
            if (thresholds := pl_module.thresholds) is not None:
                verdict = {
                    "anomalous": bool(score >= thresholds.object),
                    "anomalous_points": float((scores >= thresholds.point).float().mean()),
                }
            scored = {"sample_id": name, "file": str(self.files[stem]), "object_score": float(score)}
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
