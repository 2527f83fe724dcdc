"""A finished training: its recipe and its weights, from the folder that it left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.errors import InputError
from anomaly3d.lit.checkpoints import check_checkpoint
from anomaly3d.lit.cli import AnomalyCLI
from anomaly3d.models.base import Detector


class Trained(NamedTuple):
    """A detector in evaluation mode, on the machine's device, and the data module it was trained with."""

    detector: Detector
    data: PointCloudDataModule
    device: torch.device
    config: dict[str, Any]  # of the training: every setting, defaults included
    epochs: int  # finished ones


def load_trained(folder: Path, overrides: Mapping[str, Any] | None = None) -> Trained:
    """Build what a training built and give it the weights of its last checkpoint.

    Args:
        folder: log folder of `anomaly3d fit`, with `config.yaml` and `checkpoints/last.ckpt`; or a run's folder of
            `anomaly3d compare`, with `record.json`, which says where the configuration lies.
        overrides: values that differ from the training's by dotted key, e.g. `{data.root: DIR}`.

    Raises:
        InputError: configuration or checkpoint is missing, or they do not belong together.
    """
    recipe = _recipe(folder)
    checkpoint_path = folder / "checkpoints" / "last.ckpt"
    check_checkpoint(checkpoint_path)
    config = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    # Not the trainer: the machine that looks at a model need not have the devices that trained it.
    values = {"model": config["model"], "data": config["data"], **(overrides or {})}
    cli = AnomalyCLI(
        [
            *(f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()),
            "--trainer.devices=1",
            "--trainer.logger=false",
        ],
        run=False,
    )
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    cli.model.trainer = cli.trainer
    cli.trainer.ckpt_path = str(checkpoint_path)
    cli.model.on_load_checkpoint(checkpoint)
    cli.model.load_state_dict(checkpoint["state_dict"])
    device = cli.trainer.strategy.root_device
    return Trained(cli.model.detector.to(device).eval(), cli.datamodule, device, config, checkpoint["epoch"] + 1)


def _recipe(folder: Path) -> Path:
    record = folder / "record.json"
    log = folder / json.loads(record.read_text(encoding="utf-8"))["log"] if record.is_file() else folder
    if not (log / "config.yaml").is_file():
        raise InputError(
            f"{log / 'config.yaml'}: no such configuration; give the log folder of a training, as `anomaly3d fit` "
            "leaves it (runs/<recipe>/version_N) or a finished run's folder of `anomaly3d compare`"
        )
    return log / "config.yaml"
