"""One comparison at a time in a folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly3d.errors import InputError

_PATIENCE = 60.0
"""Seconds that the runs of a killed comparison get to notice that they are alone."""


@contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; gives its file descriptor.

    Processes that inherit the descriptor hold the lock too: it is free when the comparison and all its runs have ended,
    however they ended.

    Raises:
        InputError: another comparison works in the folder, or it is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder can be made there ({error.strerror}); give another --output") from error
    with (folder / ".lock").open("w") as file:
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    raise InputError(f"{folder}: another comparison works here; give another --output") from error
                time.sleep(0.2)
        yield file.fileno()
