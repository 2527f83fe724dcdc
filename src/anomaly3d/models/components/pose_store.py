"""Registrations kept on disk: the methods, settings and seeds of a comparison register the same clouds."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from anomaly3d.report.files import replacing

POSES = "ANOMALY3D_POSES"
"""Environment variable: the folder where registrations are kept; without it, each is computed."""

_PACKAGES = ("numpy", "open3d", "open3d-cpu", "scipy", "torch")
_spared = 0.0


def spared_seconds() -> float:
    """What the registrations that this process found on disk had taken when they were computed."""
    return _spared


def stored(
    content: tuple[bytes | str, ...], compute: Callable[[], Float64[np.ndarray, " n"]]
) -> Float64[np.ndarray, " n"]:
    """The numbers that `compute` makes of `content`, from disk where they are there.

    `content` must be all that they depend on; the registration's code and the versions of its libraries are added to
    it, so that stale numbers can't be met. Files are whole or not there at all; several processes may share a folder.
    """
    global _spared
    folder = os.environ.get(POSES)
    if not folder:
        return compute()
    name = hashlib.blake2b(digest_size=20)
    for part in (*content, _code()):
        part = part.encode() if isinstance(part, str) else part
        name.update(len(part).to_bytes(8, "little") + part)
    file = Path(folder) / f"{name.hexdigest()}.npy"
    if file.exists():
        *numbers, seconds = np.load(file)
        _spared += float(seconds)  # a plain number: it goes into checkpoints
        return np.array(numbers)
    started = time.perf_counter()
    result = compute()
    with replacing(file) as temporary:
        np.save(temporary, np.append(result, time.perf_counter() - started))
    return result


@cache
def _code() -> str:
    """The registration's sources and the versions of what they call."""
    here = Path(__file__).parent
    sources = [*(here / f"{name}.py" for name in ("fpfh", "icp", "memory", "ransac", "registration"))]
    sources.append(here.parent.parent / "ops" / "voxel.py")
    return repr([_version(name) for name in _PACKAGES]) + "".join(path.read_text("utf-8") for path in sources)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
