"""One run of a grid in a process of its own.

`python -m anomaly3d.compare.worker FOLDER SPLIT FINGERPRINT DATA_SHA256 ARG...`
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from threading import Thread

import lightning as L
from lightning.pytorch.callbacks import Callback

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.errors import InputError, message
from anomaly3d.files import write_text
from anomaly3d.lit.checkpoints import stopped
from anomaly3d.lit.cli import AnomalyCLI
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.lit.point_scores import PointScores


class Progress(Callback):
    """Tells the parent how many epochs are finished and saved, in `progress.json`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "progress.json"

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not at an epoch's end: checkpoints are written after all other callbacks there."""
        self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last epoch."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            write_text(self.file, json.dumps({"epoch": trainer.current_epoch, "epochs": trainer.max_epochs}))


def execute(folder: Path, split: str, fingerprint: str, data_sha256: str, arguments: list[str]) -> None:
    """Train (or go on training, unless that has ended), test or validate, and write `record.json`, in that order."""
    # A folder per attempt: a run that was killed keeps the curve of its first part.
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "log"},
    }
    cli = AnomalyCLI(
        [
            *arguments,
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            f"--trainer.logger={json.dumps([logger])}",
            f"--checkpoint.dirpath={folder / 'checkpoints'}",
        ],
        callbacks=[Progress(folder), PointScores()],
        run=False,
    )
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    assert isinstance(module, AnomalyModule)
    assert isinstance(data, PointCloudDataModule)
    last, trained = folder / "checkpoints" / "last.ckpt", folder / "trained"
    # A training that stopped early, killed before it said so, would go on.
    if not trained.exists() and not (last.exists() and stopped(last)):
        trainer.fit(module, data, ckpt_path=last if last.exists() else None)
    if trainer.is_global_zero:
        trained.touch()
    module.result = None
    # From the file in any case: whether a training has just ended, or had before a kill, makes no difference.
    (trainer.test if split == "test" else trainer.validate)(module, data, ckpt_path=last, verbose=False)
    module.require_result(split)
    log = Path(trainer.log_dir or folder)
    if not trainer.is_global_zero:
        return
    record = json.loads((log / split / "record.json").read_text())
    record |= {
        "log": str(log.relative_to(folder)),
        "fingerprint": fingerprint,
        "data_sha256": data_sha256,
        "command": shlex.join(["anomaly3d", "fit", *arguments]),
    }
    write_text(folder / "record.json", json.dumps(record, indent=2) + "\n")


def die_with_parent() -> None:
    """End this process and its children when the parent, which holds the other end of standard input, is gone.

    A run that outlived a killed comparison would write into the folder of its successor.
    """
    os.read(0, 1)  # not sys.stdin, whose lock Python takes when it ends
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    Thread(target=die_with_parent, daemon=True).start()
    try:
        execute(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    except InputError as error:
        sys.exit(f"anomaly3d: {message(error)}")
