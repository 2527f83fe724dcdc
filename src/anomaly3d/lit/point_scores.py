"""Point scores that a test keeps for pictures."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any
from zlib import crc32

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import CloudRecord, file_stem
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


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
