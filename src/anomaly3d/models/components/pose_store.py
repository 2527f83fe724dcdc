"""Registrations kept on disk: the methods, settings and seeds of a comparison register the same clouds."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from anomaly3d.files import replacing
from anomaly3d.ops.backend import installed_version

POSES = "ANOMALY3D_POSES"
"""Environment variable: the folder where registrations are kept; without it, each is computed."""

_PACKAGES = ("numpy", "open3d", "open3d-cpu", "scipy", "torch")
_spared = 0.0


def spared_seconds() -> float:
    """What the registrations that this process (a rank of DDP) found on disk had taken when they were computed."""
    return _spared


def stored(
    content: tuple[bytes | str, ...], compute: Callable[[], Float64[np.ndarray, " n"]]
) -> Float64[np.ndarray, " n"]:
    """The numbers that `compute` makes of `content`, from disk where they are there.

    `content` must be all that they depend on. They lie in a subfolder for the registration's code, the versions of what
    it calls and the kind of processor, so that those of another version are not met; a subfolder may be deleted at any
    time. Files are whole or not there at all; several processes may share a folder. Where it can't be written to, a
    warning says so once, and nothing is kept.
    """
    global _spared
    folder = os.environ.get(POSES)
    if not folder:
        return compute()
    name = hashlib.blake2b(digest_size=20)
    for part in content:
        part = part.encode() if isinstance(part, str) else part
        name.update(len(part).to_bytes(8, "little") + part)
    file = Path(folder) / _maker() / f"{name.hexdigest()}.npy"
    try:
        *numbers, seconds = np.load(file)
        _spared += float(seconds)  # a plain number: it goes into checkpoints
        return np.array(numbers)
    except (OSError, EOFError, ValueError):  # not there, or damaged: made anew
        pass
    started = time.perf_counter()
    result = compute()
    try:
        with replacing(file) as temporary:
            np.save(temporary, np.append(result, time.perf_counter() - started))
    except OSError as error:
        warnings.warn(
            f"{folder}: registrations can't be kept ({error.strerror}); {POSES} names the folder", stacklevel=2
        )
    return result


def _sources() -> list[Path]:
    """The files that a registration's numbers come from."""
    models = Path(__file__).parents[1]
    names = ("fpfh", "icp", "memory", "ransac", "registration")
    ops = ("precision", "sphere", "tree", "voxel")
    return [models / "components" / f"{n}.py" for n in names] + [models.parent / "ops" / f"{n}.py" for n in ops]


@cache
def _maker() -> str:
    """What registers: a hash of its sources, of the versions of what they call and of the processor's kind."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    versions = [installed_version(name) for name in _PACKAGES]
    machine = [platform.machine(), torch.backends.cpu.get_cpu_capability(), gpu]
    content = repr([*versions, *machine]) + "".join(path.read_text("utf-8") for path in _sources())
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
