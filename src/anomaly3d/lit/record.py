"""The record of a run: where its numbers come from."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from anomaly3d.models.backbones.point_mae import PointMAE
from anomaly3d.models.backbones.weights import weights_hash
from anomaly3d.models.base import Detector

_PACKAGES = ("anomaly3d", "torch", "lightning", "torchmetrics", "numpy", "scipy", "pointnet2_ops")


def provenance(detector: Detector) -> dict[str, Any]:
    """What every result carries beside its numbers: model, protocol, weights, seed, command, versions and machine."""
    backbone = next((module for module in detector.modules() if isinstance(module, PointMAE)), None)
    seed = os.environ.get("PL_GLOBAL_SEED")  # set by Lightning's seed_everything
    cuda = next(detector.parameters()).is_cuda
    return {
        "method": type(detector).__name__,
        "protocol": detector.protocol,
        "seed": None if seed is None else int(seed),
        "backbone_sha256": None if backbone is None else weights_hash(backbone),
        "parameters": sum(p.numel() for p in detector.parameters()),
        "trained_parameters": sum(p.numel() for p in detector.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "git_commit": git_commit(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "command": shlex.join(["anomaly3d", *sys.argv[1:]]),
    }


def git_commit() -> str | None:
    """Commit of the source tree this package runs from, `-dirty` when it has changes; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
