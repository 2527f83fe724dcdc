"""One heat map per category in W&B, to be turned there by hand."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
from jaxtyping import Bool, Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.report.colours import ANOMALOUS_RED, NORMAL_GREY, heat_colours
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

_MOST_POINTS = 50_000
"""W&B's viewer drops an object's further points."""


class HeatMaps(Callback):
    """Logs each category's first defective cloud as `<split>/heatmap/<category>`, a `wandb.Object3D`.

    Of a test, and of the last validation of a training or of the verb `validate`. Of several processes the first one
    shows the clouds it was given. Without a `WandbLogger` nothing is kept.
    """

    def __init__(self) -> None:
        self._scenes: dict[str, tuple[str, Float[np.ndarray, "N 6"]]] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the last validation."""
        self._scenes = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: PointCloudBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first defective cloud of each category."""
        if not _wandb(trainer) or batch.mask is None or batch.category is None or not trainer.is_global_zero:
            return
        assert isinstance(outputs, AnomalyPrediction)
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, PointCloudDataModule)
        columns = zip(
            batch.sample_id,
            (data.category_names[number] for number in batch.category.tolist()),
            batch.clouds(),
            batch.split(batch.mask),
            batch.split(outputs.point_scores),
            outputs.object_scores.tolist(),
            strict=True,
        )
        for name, category, xyz, mask, scores, object_score in columns:
            if category not in self._scenes and mask.any():
                found = scene(xyz.cpu().numpy(), scores.float().cpu().numpy(), mask.cpu().numpy())
                caption = f"{name}: heat map, and ground truth beside it; object score {object_score:.3g}"
                self._scenes[category] = (caption, found)

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the test clouds."""
        self._log(trainer, "test")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the clouds of the last validation: all of them would be megabytes each."""
        self._log(trainer, "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the validation clouds, when they are the verb and not a pause in training."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._log(trainer, "val")

    def _log(self, trainer: L.Trainer, split: str) -> None:
        for logger in _wandb(trainer) if self._scenes else []:
            import wandb

            objects: dict[str, Any] = {
                f"{split}/heatmap/{category}": wandb.Object3D({"type": "lidar/beta", "points": points}, caption=caption)
                for category, (caption, points) in self._scenes.items()
            }
            logger.log_metrics(objects, trainer.global_step)


def scene(
    xyz: Float[np.ndarray, "N 3"], scores: Float[np.ndarray, " N"], mask: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, "M 6"]:
    """Points x, y, z, r, g, b (0 to 255): the cloud in the colours of its scores and, beside it, of its truth.

    Of larger clouds a random half of W&B's limit of points, always the same.
    """
    chosen = np.random.default_rng(0).permutation(len(xyz))[: _MOST_POINTS // 2]
    heat = heat_colours(scores)[chosen, :3]  # by all scores, before some are left out
    xyz, mask = xyz[chosen], mask[chosen]
    truth = np.where(mask[:, None], ANOMALOUS_RED, NORMAL_GREY)
    centred = xyz - (xyz.min(0) + xyz.max(0)) / 2
    beside = centred + np.array([1.2 * np.ptp(xyz[:, 0]), 0, 0])
    return np.concatenate([np.hstack([centred, 255 * heat]), np.hstack([beside, 255 * truth])])


def _wandb(trainer: L.Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
