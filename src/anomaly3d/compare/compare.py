"""`anomaly3d compare`: from a grid to a table and a picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from anomaly3d.compare.devices import gpus, shares
from anomaly3d.compare.grid import Method, Run, Setting, Split, expand
from anomaly3d.compare.lock import only_one
from anomaly3d.compare.pictures import draw_heatmaps
from anomaly3d.errors import InputError
from anomaly3d.lit.record import row_facts
from anomaly3d.metrics.result import METRICS
from anomaly3d.report.comparison import compare as compare_means
from anomaly3d.report.comparison import comparison_tables, write_comparison
from anomaly3d.report.files import write_text
from anomaly3d.report.published import MEAN, Reported, read_published


def compare(
    methods: dict[str, Method],
    output: Path,
    settings: list[Setting] | None = None,
    seeds: list[int] | None = None,
    overrides: dict[str, Any] | None = None,
    jobs: int | None = None,
    split: Split = "test",
    rank: str | None = None,
    reported: Reported | None = None,
) -> None:
    """Train and test every method in every setting; write the table and a picture of heat maps.

    Each run has a process and a folder of its own. Started again after a kill, finished runs are kept and a
    broken one goes on from its last epoch; on the CPU the tables are the same, byte for byte.

    Args:
        methods: rows of the table: name, recipe (`config`) and, where needed, `overrides` of it and `published` values.
        output: folder of the results: `comparison.md`, `.csv`, `.tex`, the same by category, `heatmaps.png`, `runs/`,
            and `runs.csv` with every number of every run and where it comes from.
        settings: `unified` (one model for all categories) and `per-category` (one model each); both by default.
        seeds: one run per seed; default [0].
        overrides: values for every run by dotted key, e.g. `{data.root: DIR, trainer.max_epochs: 10}`.
        jobs: runs at a time, among which GPUs and cores are shared; default: one per GPU, or one without any.
        split: `test`, or `validation` for numbers from training clouds alone, to choose settings by.
        rank: metric by whose mean the rows are ordered, the best first; by default they stand as given.
        reported: published tables, whose values stand beside those of the methods that have the same names there, e.g.
            `{files: [benchmarks/reported/sedir_per_category.csv], dataset: Real3D-AD}`.

    Raises:
        InputError: a recipe is missing, the data can't be read, or a run failed (with its log's last lines).
    """
    published = read_published(reported) if reported is not None else {}
    for name, method in methods.items():
        published |= {(name, "", metric, MEAN): value / 100 for metric, value in method.published.items()}
    runs = list(grid(methods, output, settings or ["unified", "per-category"], seeds or [0], overrides or {}, split))
    console = Console()
    with only_one(output) as lock:
        waiting = [run for run in runs if not finished(run)]
        console.print(f"{len(runs)} runs in {output}, {len(runs) - len(waiting)} of them finished before")
        execute_all(waiting, jobs or max(1, len(gpus())), lock)
    rows, lines = collect(runs)
    if rank is not None:
        rows = ranked(rows, rank)
    for table in comparison_tables(rows, lines, published):
        console.print(table.console())
    written = [*write_comparison(rows, output, lines, published), draw_heatmaps(runs, output / "heatmaps.png")]
    written.append(write_text(output / "runs.csv", rows.to_csv(index=False)))
    console.print("written:", *(str(path) for path in written if path is not None), sep="\n  ")


def grid(
    methods: dict[str, Method],
    output: Path,
    settings: list[Setting],
    seeds: list[int],
    overrides: dict[str, Any],
    split: Split,
) -> Iterator[Run]:
    """The runs; asks the first recipe's data module for the categories."""
    from anomaly3d.lit.cli import DataCLI

    for name, method in methods.items():
        if not method.config.is_file():
            raise InputError(f"{method.config}: no such recipe (method '{name}')")
        if unknown := sorted(set(method.published) - set(METRICS)):
            raise InputError(f"published of '{name}': no metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    first = next(iter(methods.values()), None)
    if first is None:
        raise InputError("methods: none given; name at least one, e.g. --methods.SeDiR.config FILE")
    probe = Run("", "unified", 0, (), first.config, {**overrides, **first.overrides}, output)
    asked = [argument for argument in probe.arguments if not argument.startswith("--data.categories=[]")]
    data = DataCLI(asked).datamodule
    data.setup("fit")
    return expand(methods, settings, seeds, data.category_names, overrides, output, split)


def finished(run: Run) -> bool:
    """Whether the run's record is there and belongs to exactly these settings."""
    record = run.folder / "record.json"
    return record.exists() and json.loads(record.read_text())["fingerprint"] == run.fingerprint


def execute_all(runs: list[Run], jobs: int, lock: int) -> None:
    """Run the waiting part of a grid, `jobs` at a time; the first failure ends it. `lock`: see `start`."""
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
                    running.append((run, start(run, share, lock), share, progress.add_task(run.name, total=None)))
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
                        raise InputError(failure(run))
        finally:
            for _, process, _, _ in running:
                os.killpg(process.pid, signal.SIGKILL)


def start(run: Run, share: dict[str, str], lock: int) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own, its output in `log.txt`.

    `share` is the environment that gives it its part of the machine. It inherits the descriptor `lock`.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    fingerprint = run.folder / "fingerprint"
    if not fingerprint.exists() or fingerprint.read_text() != run.fingerprint:
        # A checkpoint of other settings must not be gone on from.
        (run.folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
        fingerprint.write_text(run.fingerprint)
    (run.folder / "progress.json").unlink(missing_ok=True)
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "anomaly3d.compare.worker", str(run.folder), run.split, run.fingerprint),
                *run.arguments,
            ],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends: the worker then ends too
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
            env={**os.environ, **share},
        )


def show_progress(progress: Progress, bar: TaskID, run: Run) -> None:
    """Epochs of one running training."""
    file = run.folder / "progress.json"
    if file.exists():
        state = json.loads(file.read_text())
        progress.update(bar, completed=state["epoch"], total=state["epochs"])


def failure(run: Run) -> str:
    """What to say of a run that failed: the last lines of its log."""
    log = run.folder / "log.txt"
    tail = "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-8:])
    return f"the run '{run.name}' failed; the end of {log}:\n{tail}"


def collect(runs: list[Run]) -> tuple[pd.DataFrame, list[str]]:
    """Rows, one per run and category, with metrics in [0, 1]; and lines that say where they come from."""
    records = [json.loads((run.folder / "record.json").read_text()) for run in runs]
    rows = [
        # The row's names are the grid's: several may be of one class of detector.
        {**row_facts(record), "method": run.method, "setting": run.setting, "seed": run.seed, **result}
        for run, record in zip(runs, records, strict=True)
        for result in record["results"]
    ]
    return pd.DataFrame(rows), provenance_lines(runs, records)


def ranked(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of the method with the largest mean first; methods that are level stay in order."""
    means = compare_means(rows).groupby("method", sort=False)[f"{metric}_mean"].mean()
    place = {method: number for number, method in enumerate(means.sort_values(ascending=False, kind="stable").index)}
    return rows.sort_values("method", key=lambda names: names.map(place), kind="stable", ignore_index=True)


def provenance_lines(runs: list[Run], records: list[dict[str, Any]]) -> list[str]:
    """Backbone, commit and machine of a comparison, and where the rest is.

    No wall times: they differ from one execution to the next, and the tables must not.
    """
    lines = []
    for method in dict.fromkeys(run.method for run in runs):
        mine = [record for run, record in zip(runs, records, strict=True) if run.method == method]
        hashes = ", ".join(sorted({record["backbone_sha256"][:12] for record in mine if record["backbone_sha256"]}))
        count = f"{len(mine)} runs" if len(mine) > 1 else "1 run"
        lines.append(f"{method}: {count}" + (f", backbone sha256 {hashes}." if hashes else "."))
    if runs[0].split == "validation":
        lines.append("Validation clouds, made from training clouds; no test cloud was read.")
    last = records[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return [
        *lines,
        f"Commit {last['git_commit']}; {last['device']}; {versions}. Times, memory and settings of every run: "
        "runs.csv, runs/**/record.json.",
    ]
