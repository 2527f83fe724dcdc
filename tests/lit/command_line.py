"""The command in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu")
"""Two processes on the CPU, as `ddp` runs them on GPUs."""


def run(folder: Path, verb: str, conf: Path, root: Path, *extra: str) -> None:
    """`anomaly3d <verb>` in a folder, with one thread per process; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "anomaly3d", verb, "--config", str(conf), "--data.root", str(root), *extra],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def checkpoint(folder: Path, version: int = 0) -> Path:
    """The checkpoint of the training that was the folder's run of this number."""
    (file,) = folder.glob(f"runs/*/version_{version}/checkpoints/last.ckpt")
    return file
