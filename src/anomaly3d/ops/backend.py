"""Which implementation runs: `auto` picks and says so once, a name that cannot be had is an error."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from anomaly3d.errors import InputError, NotReady

_log = logging.getLogger(__name__)

INSTALL = {
    # Built against the torch that is installed; the second name is the compiled part of the first.
    "mamba_ssm": "pip install --no-build-isolation mamba-ssm",
    "selective_scan_cuda": "pip install --no-build-isolation mamba-ssm",
    "pointnet2_ops": "pip install --no-build-isolation "
    "'git+https://github.com/erikwijmans/Pointnet2_PyTorch#subdirectory=pointnet2_ops_lib'",
}
"""How to get the optional packages that their name alone does not install."""

REPAIR = {
    "open3d": "It takes libraries of the system; Debian: apt-get install libegl1 libgl1 libgomp1 libusb-1.0-0",
}
"""What is missing where a package is installed and does not import, if installing it again is no help."""


def find_package(name: str) -> ModuleType | None:
    """The optional package, imported on first use; None where it is not installed or does not import."""
    found = _try_import(name) if _installed(name) else None
    return None if isinstance(found, Exception) else found


def installed_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_package(name: str, setting: str) -> ModuleType:
    """The optional package, or an `InputError` that names the setting which asked for it and the remedy."""
    command = f"Run: {INSTALL.get(name, f'pip install {name}')}"
    if not _installed(name):
        raise NotReady(f"{setting} needs {name}, which is not installed. {command}")
    found = _try_import(name)
    if isinstance(found, Exception):
        remedy = REPAIR.get(name, command)
        raise NotReady(f"{setting} needs {name}, which is installed but does not import ({found}). {remedy}")
    return found


def check_backend(operation: str, backend: str, known: Sequence[str]) -> None:
    """Raise `InputError` for a backend that the operation does not have."""
    if backend not in ("auto", *known):
        raise InputError(f"{operation} has no backend {backend!r}: use auto or one of {', '.join(known)}")


CHOSEN: dict[str, str] = {}
"""What `auto` has picked in this process, by operation and device type, for the record of a run."""


@cache
def log_choice(operation: str, backend: str, device: str) -> None:
    """Log and keep what `auto` picked, once per operation, backend and device type in a process."""
    CHOSEN[f"{operation} on {device}"] = backend
    _log.info("%s on %s: backend %s", operation, device, backend)


def _installed(name: str) -> bool:
    # Asking for the specification costs no import, and no CUDA context, where the package is absent.
    return importlib.util.find_spec(name) is not None


@cache
def _try_import(name: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a compiled extension fails in its own ways: ImportError, OSError, RuntimeError
        _log.warning("%s is installed but does not import, going on without it: %s", name, error)
        return error.with_traceback(None)
