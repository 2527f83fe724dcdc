"""The two scans of Mamba3dAD's adapters against their sequential loops: time and memory over the length T.

    python benchmarks/scan.py [--lengths 256,1024,4096,16384] [--repeats 3]

Forward and backward, batch 1. The LTI scan has a state of 256, the selective scan 128 channels with a state of 16
each. Every cell is a process of its own: the median time after a warm-up, and how far the process's peak memory
rises above what it holds with the inputs in place. Ratios carry over between machines better than times do; on a
machine that is busy trust the trend over T.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import torch
from torch import Tensor

from anomaly3d.lit.record import peak_memory
from anomaly3d.ops.scan import Rotation, lti_scan, naive_lti_scan
from anomaly3d.ops.selective_scan import selective_scan

STATE, CHANNELS, CHANNEL_STATE = 256, 128, 16

Run = Callable[[], object]


def lti(scan: str, steps: int) -> Run:
    """A step of training through the LTI scan: `loop` and `dense` with a matrix, `rotation` with its angles."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, steps, STATE, generator=generator).requires_grad_()
    angles = torch.rand(STATE // 2, generator=generator).requires_grad_()
    rotation = Rotation(torch.tensor(0.9), angles)
    matrix = rotation.dense().detach().requires_grad_()
    forms: dict[str, tuple[Callable[[], Tensor], Tensor]] = {
        "loop": (lambda: naive_lti_scan(u, matrix), matrix),
        "dense": (lambda: lti_scan(u, matrix), matrix),
        "rotation": (lambda: lti_scan(u, rotation), angles),
    }
    forward, parameter = forms[scan]
    return lambda: torch.autograd.grad(forward().sum(), (u, parameter))


def selective(backend: str, steps: int) -> Run:
    """A step of training through the selective scan, gradients of all six tensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, steps, CHANNELS)] * 2 + [(CHANNELS, CHANNEL_STATE)] + [(1, steps, CHANNEL_STATE)] * 2 + [(CHANNELS,)]
    arguments = [torch.randn(*shape, generator=generator) for shape in shapes]
    arguments[2] = -arguments[2].exp()
    for argument in arguments:
        argument.requires_grad_()
    return lambda: torch.autograd.grad(selective_scan(*arguments, backend=backend).sum(), arguments)


CASES: dict[str, tuple[Callable[[str, int], Run], dict[str, str]]] = {
    f"LTI scan, state {STATE}": (
        lti,
        {"loop over u.unbind(1), dense": "loop", "ours, dense": "dense", "ours, rotation": "rotation"},
    ),
    f"Selective scan, {CHANNELS} x {CHANNEL_STATE}": (
        selective,
        {"loop over unbind(1)": "naive", "ours, chunked": "chunked"},
    ),
}


def measure(title: str, scan: str, steps: int, repeats: int) -> tuple[float, float]:
    """Median milliseconds, and MB above what was held before the first run."""
    build, _ = CASES[title]
    build(scan, 64)()  # threads, and what autograd loads
    run = build(scan, steps)
    before = peak_memory()
    run()
    risen, times = (peak_memory() - before) / 2**20, []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times), risen


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table for each scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="256,1024,4096,16384")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    lengths = [int(length) for length in options.lengths.split(",")]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.repeats} runs")
    # Started anew, not forked: a fork begins with all that this process holds.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for title, (_, scans) in CASES.items():
            print(f"\n### {title}\n\n| ms, MB, ratio to the loop | " + " | ".join(f"T = {t}" for t in lengths) + " |")
            print("|:--|" + "--:|" * len(lengths))
            loops: list[float] = []
            for name, scan in scans.items():
                found = [pool.submit(measure, title, scan, t, options.repeats).result() for t in lengths]
                loops = loops or [ms for ms, _ in found]
                cells = [
                    f"{ms:.1f} ms, {mb:.0f} MB, {loop / ms:.1f}x" for (ms, mb), loop in zip(found, loops, strict=True)
                ]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
