"""Where the time of scoring one cloud goes: Mamba3dAD and SeDiR at the paper's size and at the laptop recipe's.

    python benchmarks/latency.py [--points 57000] [--repeats 3] [--device cpu] [--only mamba3dad_paper]

Stages are measured inside `score` itself, as in every test (`anomaly3d/ops/stages.py`), on a GPU by CUDA events with a
synchronisation at each. Random weights: their values do not matter. The arithmetic floor of a stage is its matrix
products and attention, counted as in `cost.py`, at the rate of a large float32 matrix product on the same device. The
whole is the sum of the stages' medians. Shares carry over between machines better than times do.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from anomaly3d.models.base import Detector
from anomaly3d.models.components.pose_store import POSES
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.ops.multiply_adds import counting
from anomaly3d.ops.stages import measured
from anomaly3d.types import PointCloudBatch
from cost import CATEGORIES
from ops import surface

PAPER = {"mamba3dad_paper": "; the paper: 17.31 on an RTX 3090"}
BASE = {"backbone_size": "base", "backbone_weights": "random"}
SIZES: dict[str, dict[str, Any]] = {"mamba3dad_paper": {"state": 256}, "mamba3dad_tiny": {"voxel_size": None}}
"""What else recipes set: the paper's adapter goes with its backbone, and the laptop's filter no voxels."""


def clock(cuda: bool) -> Callable[[], float]:
    """Gives milliseconds since some moment: the processor's, or those between events of the GPU."""
    if not cuda:
        return lambda: 1e3 * time.perf_counter()
    begin = torch.cuda.Event(enable_timing=True)
    begin.record()

    def now() -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return begin.elapsed_time(event)

    return now


def detectors() -> dict[str, Callable[[], Detector]]:
    """The four models by the recipe that has their sizes; those of the paper stand on the published backbone."""

    def build(form: type[Detector], recipe: str) -> Detector:
        path = Path(__file__).parents[1] / "configs" / "model" / f"{recipe}.yaml"
        settings = yaml.safe_load(path.read_text())["detector"]["init_args"]
        torch.manual_seed(0)
        model = form(**settings | (BASE if recipe.endswith("paper") else {}) | SIZES.get(recipe, {}))
        model.configure(CATEGORIES)
        return model.eval()

    forms: dict[str, type[Detector]] = {"mamba3dad": Mamba3dAD, "sedir": SeDiR}
    recipes = [f"{name}_{size}" for size in ("paper", "tiny") for name in forms]
    return {recipe: partial(build, forms[recipe.split("_")[0]], recipe) for recipe in recipes}


def product_rate(device: torch.device, runs: int = 20) -> float:
    """Multiply-adds a second of a float32 matrix product, the best of several runs."""
    size = 4096 if device.type == "cuda" else 1024
    a, b = torch.rand(2, size, size, device=device)
    torch.mm(a, b)
    now, times = clock(device.type == "cuda"), []
    for _ in range(runs):
        begin = now()
        torch.mm(a, b)
        times.append(now() - begin)
    return 1e3 * size**3 / min(times)


def report(recipe: str, model: Detector, batch: PointCloudBatch, repeats: int, rate: float) -> None:
    """Print one model's table."""
    os.environ.pop(POSES, None)  # a registration that lies on disk takes no time
    now = clock(batch.xyz.is_cuda)
    work: dict[str, float] = {}
    with counting() as so_far, measured(so_far, work):  # the first run also warms up
        model.score(batch)
    runs: list[dict[str, float]] = [{} for _ in range(repeats)]
    for times in runs:
        with measured(now, times):
            model.score(batch)
    middle = {stage: median(run[stage] for run in runs) for stage in runs[0]}
    # Of the medians, so that shares add up and one interruption does not count.
    total, products = sum(middle.values()), sum(work.values())
    print(f"\n### {recipe}\n\n| stage | ms | share | multiply-adds (G) | floor (ms) |\n|:--|--:|--:|--:|--:|")
    for stage, ms in middle.items():
        amount = work.get(stage, 0.0)
        cells = f"{amount / 1e9:.2f} | {1e3 * amount / rate:.1f}" if amount else "|"
        print(f"| {stage} | {ms:.1f} | {ms / total:.1%} | {cells} |")
    print(f"| **one cloud** | **{total:.1f}** | | **{products / 1e9:.2f}** | **{1e3 * products / rate:.1f}** |")
    speed = f"{1e3 / total:.2f} clouds a second; at the arithmetic floor {rate / products:.2f}"
    print(f"\n{speed}{PAPER.get(recipe, '')}.", flush=True)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=57_000, help="of the cloud; Anomaly-ShapeNet's mean size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=list(detectors()), help="one model instead of all four")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    batch = PointCloudBatch.pack([surface(options.points)], ["ellipsoid"]).to(device)
    rate = product_rate(device)
    print(f"torch {torch.__version__}, {name}, {options.points} points, medians of {options.repeats} runs")
    print(f"\nA float32 matrix product runs at {rate / 1e9:.0f} G multiply-adds a second.")
    for recipe, build in detectors().items():
        if options.only in (None, recipe):
            report(recipe, build().to(device), batch, options.repeats, rate)


if __name__ == "__main__":
    main()
