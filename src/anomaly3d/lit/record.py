"""The record of a run: where its numbers come from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from anomaly3d.models.backbones.point_mae import PointMAE
from anomaly3d.models.backbones.weights import weights_hash
from anomaly3d.models.base import Detector
from anomaly3d.ops.backend import CHOSEN, installed_version

_NO_RESULT = ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary")
"""Settings of the trainer that say where files go and what is shown."""
_IN_ROWS = (
    *("method", "split", "dataset", "setting", "protocol", "seed", "backbone_weights", "backbone_sha256"),
    *("ops_backend", "versions", "git_commit", "config_sha256", "data_sha256", "train_seconds", "test_seconds"),
    *("peak_memory_mib", "peak_gpu_memory_mib", "device", "parameters", "trained_parameters"),
    *("multiply_adds_per_cloud", "stage_seconds_per_cloud", "category_accuracy"),
)
_PACKAGES = (
    *("anomaly3d", "torch", "lightning", "torchmetrics", "numpy", "scipy", "scikit-learn"),
    *("open3d", "open3d-cpu", "pointnet2_ops", "mamba-ssm"),
)


def run_seed() -> int | None:
    """The seed of this process, as Lightning's seed_everything leaves it."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def provenance(detector: Detector) -> dict[str, Any]:
    """What every result carries beside its numbers: model, protocol, weights, seed, command, versions and machine."""
    backbone = next((module for module in detector.modules() if isinstance(module, PointMAE)), None)
    cuda = next(detector.parameters()).is_cuda
    return {
        "method": type(detector).__name__,
        "protocol": detector.protocol,
        "seed": run_seed(),
        "backbone_sha256": None if backbone is None else weights_hash(backbone),
        "parameters": sum(p.numel() for p in detector.parameters()),
        "trained_parameters": sum(p.numel() for p in detector.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else f"{processor()}, {torch.get_num_threads()} threads",
        "ops_backend": dict(CHOSEN),
        **peak_mib(),
        **_code(),
        "command": shlex.join(["anomaly3d", *sys.argv[1:]]),
    }


def training_facts(config: Path | None) -> dict[str, Any]:
    """Of a training that starts now: what a test of its checkpoint, perhaps elsewhere and later, can't know."""
    return {
        **_code(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        **settings(config),
    }


def _code() -> dict[str, Any]:
    return {
        "git_commit": git_commit(),
        "versions": {name: found for name in _PACKAGES if (found := installed_version(name))},
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_mib() -> dict[str, int | None]:
    """The most memory that this process has held so far, in MiB, of the machine and of its GPU."""
    cuda = torch.cuda.is_initialized()
    return {
        "peak_memory_mib": round(peak_memory() / 2**20),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) or None if cuda else None,
    }


def peak_memory() -> int:
    """The most memory that this process held at a time, in bytes; data loaders' workers are processes of their own."""
    try:
        # Not ru_maxrss, which starts at what the parent held when it started this process.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def settings(config: Path | None) -> dict[str, str | None]:
    """What a run's `config.yaml` adds: the name of the backbone's weights, and the SHA-256 of what decides a result.

    Hashed are seed, model, data, trainer with its callbacks, and which checkpoints are kept, with every default, but
    not where logs and checkpoints go. Without the file both are None.
    """
    if config is None or not config.is_file():
        return {"backbone_weights": None, "config_sha256": None}
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    trainer = {name: value for name, value in values["trainer"].items() if name not in _NO_RESULT}
    kept = {name: value for name, value in (values.get("checkpoint") or {}).items() if name != "dirpath"}
    decisive = {name: values[name] for name in ("seed_everything", "model", "data")}
    decisive |= {"trainer": trainer, "checkpoint": kept}
    detector = values["model"]["detector"].get("init_args") or {}
    return {
        "backbone_weights": detector.get("backbone_weights"),
        "config_sha256": hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
    }


def row_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a CSV of results carries of a run's record; mappings as the text of one cell.

    Facts that records of older versions lack are None.
    """
    facts = {name: record.get(name) for name in _IN_ROWS}
    return {
        name: "; ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else value
        for name, value in facts.items()
    }


def git_commit() -> str | None:
    """Commit of the source tree this package runs from, `-dirty` when it has changes; None outside a checkout.

    A repository that this file is not part of, as around a virtual environment, is somebody else's.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
