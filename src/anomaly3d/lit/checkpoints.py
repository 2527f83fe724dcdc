"""Checkpoint files: whole or not at all when written, looked at before anything else when read."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from anomaly3d.errors import InputError, reason
from anomaly3d.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the file that is replaced, then renames.

    Lightning writes to the system's folder for temporary files and moves. Where that is another file system, as a /tmp
    in memory, moving is copying: a kill halfway would leave half a checkpoint, and nothing to go on from.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace `path` as a whole."""
        if "://" in str(path):  # no file of this machine
            return super().save_checkpoint(checkpoint, path, storage_options)
        with replacing(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Let the trainer write `WholeCheckpoints`, unless its configuration says how to write them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()


def check_checkpoint(path: Path) -> None:
    """Raise InputError unless `path` is a checkpoint of a training that loads with weights only."""
    if path.is_dir():
        inside = max(path.rglob("last.ckpt"), key=lambda file: file.stat().st_mtime, default=None)
        raise InputError(f"{path}: a folder; give the checkpoint in it" + (f", {inside}" if inside else ""))
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; `anomaly3d fit` writes <log folder>/checkpoints/last.ckpt")
    with path.open("rb"):  # what the system refuses is not to be taken for a damaged file
        pass
    saved_by_torch = is_zipfile(path)
    if not saved_by_torch and path.suffix != ".safetensors":
        raise InputError(f"{path}: not a readable checkpoint (no file that torch has saved, or cut off)")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if saved_by_torch else {}
    except Exception as error:  # a damaged file fails in any way that unpickling can
        raise InputError(f"{path}: not a readable checkpoint ({reason(error)})") from error
    if "state_dict" not in found:  # as a file of weights alone
        raise InputError(
            f"{path}: no checkpoint of a training; `anomaly3d fit` writes <log folder>/checkpoints/last.ckpt, and "
            "weights of a backbone go to --model.detector.init_args.backbone_weights"
        )


def stopped(path: Path) -> bool:
    """Whether the training of a checkpoint that anomaly3d wrote had decided to end when it was written."""
    made_by = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("anomaly3d", {})
    return bool(made_by.get("stopped"))
