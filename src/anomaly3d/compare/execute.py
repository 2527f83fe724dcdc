"""Runs of a grid beside each other, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from anomaly3d.compare.devices import shares
from anomaly3d.compare.grid import Run
from anomaly3d.models.components.pose_store import POSES

_STARTED = "--- started\n"
"""Stands in the log before each attempt."""


def execute_all(runs: list[Run], jobs: int, lock: int, poses: Path) -> list[tuple[Run, str]]:
    """Run the waiting part of a grid, `jobs` at a time. `lock` and `poses`: see `start`.

    A run that fails is named at once, and the others go on; returns those that failed, each with what to say of it.
    """
    failed: list[tuple[Run, str]] = []
    waiting = list(runs)
    free = shares(jobs)
    running: list[tuple[Run, subprocess.Popen[bytes], dict[str, str], TaskID]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        overall = progress.add_task("runs", total=len(runs))
        try:
            while waiting or running:
                while waiting and free:
                    run, share = waiting.pop(0), free.pop(0)
                    running.append(
                        (run, start(run, share, lock, poses), share, progress.add_task(run.name, total=None))
                    )
                time.sleep(0.2)
                for entry in list(running):
                    run, process, share, bar = entry
                    show_progress(progress, bar, run)
                    if process.poll() is None:
                        continue
                    running.remove(entry)
                    free.append(share)
                    progress.remove_task(bar)
                    progress.advance(overall)
                    if process.returncode != 0:
                        failed.append((run, failure(run, process.returncode)))
                        first_line = failed[-1][1].partition("\n")[0]
                        progress.console.print(first_line, markup=False, highlight=False, soft_wrap=True)
        finally:
            for _, process, _, _ in running:
                os.killpg(process.pid, signal.SIGKILL)
    return failed


def start(run: Run, share: dict[str, str], lock: int, poses: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own, its output in `log.txt`.

    `share` is the environment that gives it its part of the machine. It inherits the descriptor `lock`. Registrations
    are kept in `poses`, unless the environment names another folder.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    fingerprint = run.folder / "fingerprint"
    if not fingerprint.exists() or fingerprint.read_text() != run.fingerprint:
        # A checkpoint of other settings must not be gone on from, nor its result stand beside one of these.
        (run.folder / "record.json").unlink(missing_ok=True)
        (run.folder / "trained").unlink(missing_ok=True)
        (run.folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        fingerprint.write_text(run.fingerprint)
    (run.folder / "progress.json").unlink(missing_ok=True)
    for half in (run.folder / "checkpoints").glob(".last.*.ckpt"):  # of a run that was killed while it wrote
        half.unlink()
    with (run.folder / "log.txt").open("ab") as log:
        log.write(_STARTED.encode())
        log.flush()
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "anomaly3d.compare.worker"),
                *(str(run.folder), run.split, run.fingerprint, run.data_sha256),
                *run.arguments,
            ],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends: the worker then ends too
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
            env={POSES: str(poses), **os.environ, **share},
        )


def show_progress(progress: Progress, bar: TaskID, run: Run) -> None:
    """Epochs of one running training."""
    file = run.folder / "progress.json"
    if file.exists():
        state = json.loads(file.read_text())
        progress.update(bar, completed=state["epoch"], total=state["epochs"])


def failure(run: Run, returncode: int) -> str:
    """What to say of a run that failed: the last lines that its log has of this attempt, or what killed it."""
    log = run.folder / "log.txt"
    said = log.read_text(errors="replace").rpartition(_STARTED)[2]
    tail = "\n".join(f"  {line}" for line in said.splitlines()[-8:])
    if returncode < 0:
        memory = " (out of memory?)" if returncode == -signal.SIGKILL else ""
        how = f"was killed by {signal.Signals(-returncode).name}{memory}"
        return f"the run '{run.name}' {how}; the end of {log}:\n{tail}"
    return f"the run '{run.name}' failed; the end of {log}:\n{tail}"
