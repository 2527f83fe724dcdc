"""AUROC and average precision of many points: time and memory of ours, torchmetrics' and scikit-learn's.

    python benchmarks/metrics.py --points 1e6 1e7 --output benchmarks/results/metrics.md

Scores are float32 in (0, 1), the only range that torchmetrics does not transform: a normal deviate's probability, 2 %
of them positive and shifted by one. They come in updates of a million. Each measurement has a process of its own.
Seconds are wall and processor time of updates and computation, without the making of the scores, the best of the
repeats each (on a shared machine compare processor time, with OMP_NUM_THREADS=1); memory is the process's peak beyond
what imports and two updates need, the scores included where they are kept. A process that asks for more than
`--memory` GiB of address space ends, and its row says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly3d.lit.record import peak_memory

UPDATE = 1_000_000
Updates = Iterator[tuple[Tensor, Tensor]]


def updates(points: int, positives: float) -> Updates:
    """Scores and truth, a million at a time; the same in every process."""
    for number, start in enumerate(range(0, points, UPDATE)):
        generator = torch.Generator().manual_seed(number)
        count = min(UPDATE, points - start)
        target = torch.rand(count, generator=generator) < positives
        yield torch.special.ndtr(torch.randn(count, generator=generator) + target), target


class Clock:
    """Wall and processor time spent on the metric."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result; its time is added."""
        start, cpu_start = time.perf_counter(), time.process_time()
        result = function(*args)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start
        return result


def histograms(parts: Updates, clock: Clock) -> dict[str, float]:
    """Ours in fixed memory, with bounds."""
    from anomaly3d.metrics.binned import binned_auroc, binned_average_precision
    from anomaly3d.metrics.binned_classes import ScoreHistograms

    metric = ScoreHistograms()
    for scores, target in parts:
        clock(metric.update, scores, target)
    found = clock(metric.compute)
    auroc, precision = (
        clock(function, found.positives[0], found.negatives[0]) for function in (binned_auroc, binned_average_precision)
    )
    return {
        "auroc": auroc.value.item(),
        "ap": precision.value.item(),
        "auroc_bound": (auroc.upper - auroc.value).item(),
        "ap_bound": max(precision.upper - precision.value, precision.value - precision.lower).item(),
    }


def sorting(parts: Updates, clock: Clock) -> dict[str, float]:
    """Ours, exact."""
    from anomaly3d.metrics.functional import ranking_metrics

    found = clock(ranking_metrics, *gathered(parts))
    return {"auroc": found.auroc.item(), "ap": found.average_precision.item()}


def torchmetrics_exact(parts: Updates, clock: Clock) -> dict[str, float]:
    """torchmetrics' binary metrics without thresholds, in a collection that shares their states."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

    metric = MetricCollection({"auroc": BinaryAUROC(), "ap": BinaryAveragePrecision()})
    for scores, target in parts:
        clock(metric.update, scores, target)
    return {name: value.item() for name, value in clock(metric.compute).items()}


def scikit_learn(parts: Updates, clock: Clock) -> dict[str, float]:
    """scikit-learn's two functions."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, target = (part.numpy() for part in gathered(parts))
    return {
        "auroc": float(clock(roc_auc_score, target, scores)),
        "ap": float(clock(average_precision_score, target, scores)),
    }


def gathered(parts: Updates) -> tuple[Tensor, Tensor]:
    """All scores in one tensor; the pieces of it are freed."""
    scores, target = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(target)


CONTENDERS: dict[str, Callable[[Updates, Clock], dict[str, float]]] = {
    "histograms (ours)": histograms,
    "sorting (ours)": sorting,
    "torchmetrics": torchmetrics_exact,
    "scikit-learn": scikit_learn,
}


def measure(name: str, points: int, positives: float, repeats: int) -> dict[str, float]:
    """Run one contender in this process: seconds, MiB and its values."""
    CONTENDERS[name](updates(1000, 0.5), Clock())  # imports, and whatever is set up once
    for _ in updates(2 * UPDATE, positives):  # so that the making of an update is in the base
        pass
    before = peak_memory()
    clocks = [Clock() for _ in range(repeats)]
    values = [CONTENDERS[name](updates(points, positives), clock) for clock in clocks][-1]
    seconds = {name: min(getattr(clock, name) for clock in clocks) for name in ("seconds", "cpu_seconds")}
    return {**seconds, "mib": (peak_memory() - before) / 2**20, **values}


def measured(command: list[str]) -> dict[str, float] | None:
    """What a process of its own measured; None if its memory did not suffice."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    # numpy raises MemoryError, torch says "not enough memory" or "can't allocate memory"; -9 is the kernel's answer.
    if done.returncode == -9 or "memory" in (done.stderr.splitlines() or [""])[-1].lower():
        return None
    sys.exit(done.stderr)


def table(rows: list[tuple[int, str, dict[str, float] | None]]) -> str:
    """Markdown; differences are to scikit-learn where it ran, else to sorting."""
    lines = [
        "| points | metric | seconds | CPU s | CPU, times ours | MiB | AUROC | AP | off AUROC | off AP "
        "| bound AUROC | bound AP |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for points, name, row in rows:
        if row is None:
            lines.append(f"| {points:.0e} | {name} | out of memory |{' |' * 9}")
            continue
        same = {other: values for count, other, values in rows if count == points and values is not None}
        reference = same.get("scikit-learn", same.get("sorting (ours)", row))
        off = [f"{abs(row[m] - reference[m]):.0e}" for m in ("auroc", "ap")]
        bounds = [f"{row[m]:.0e}" if m in row else "" for m in ("auroc_bound", "ap_bound")]
        ours = same.get("histograms (ours)")
        ratio = "" if ours is None else f"{row['cpu_seconds'] / ours['cpu_seconds']:.1f}"
        numbers = [f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", ratio, f"{row['mib']:.0f}"]
        numbers += [f"{row[metric]:.6f}" for metric in ("auroc", "ap")]
        lines.append(f"| {points:.0e} | {name} | {' | '.join([*numbers, *off, *bounds])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all contenders, each in a process of its own, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--positives", type=float, default=0.02, help="share of anomalous points")
    parser.add_argument("--only", choices=list(CONTENDERS), nargs="+", default=list(CONTENDERS))
    parser.add_argument("--memory", type=float, help="GiB of address space that each process may have")
    parser.add_argument("--here", action="store_true", help="measure the only contender in this process; prints JSON")
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    if arguments.here:
        if arguments.memory is not None:
            limit = int(arguments.memory * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        (name,), (points,) = arguments.only, arguments.points
        print(json.dumps(measure(name, int(points), arguments.positives, arguments.repeats)))
        return
    rows = []
    for points in map(int, arguments.points):
        for name in arguments.only:
            command = [sys.executable, __file__, "--here", "--only", name, "--points", str(points)]
            command += ["--repeats", str(arguments.repeats), "--positives", str(arguments.positives)]
            command += [] if arguments.memory is None else ["--memory", str(arguments.memory)]
            rows.append((points, name, measured(command)))
            print(points, name, rows[-1][2], flush=True)
    if arguments.output is not None:
        shown = " ".join(["python", "benchmarks/metrics.py", *sys.argv[1:]])
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        arguments.output.write_text(f"`{shown}`, {machine}\n\n{table(rows)}", encoding="utf-8")


if __name__ == "__main__":
    main()
