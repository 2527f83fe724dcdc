"""Where the time of scoring one cloud goes: Mamba3dAD and SeDiR at the paper's size and at the laptop recipe's.

    python benchmarks/latency.py [--points 57000] [--repeats 3] [--device cpu] [--only mamba3dad_paper]

Stages are measured inside `score` itself: the functions it calls are timed for the duration of a run, on a GPU by CUDA
events with a synchronisation behind each. Random weights: their values do not matter. The arithmetic floor of a stage
is its matrix products and attention, counted as in `cost.py`, at the rate of a large float32 matrix product on the
same device. The whole is the sum of the stages' medians. Shares carry over between machines better than times do.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import yaml

from anomaly3d.models.base import Detector
from anomaly3d.models.components import patches
from anomaly3d.models.components.pose_store import POSES
from anomaly3d.models.mamba3dad import Mamba3dAD, mamba3dad
from anomaly3d.models.sedir import SeDiR, sedir
from anomaly3d.types import PointCloudBatch
from cost import CATEGORIES, counted
from ops import surface

PAPER = {"mamba3dad_paper": "; the paper: 17.31 on an RTX 3090"}
BASE = {"backbone_size": "base", "backbone_weights": "random"}
SIZES: dict[str, dict[str, Any]] = {"mamba3dad_paper": {"state": 256}, "mamba3dad_tiny": {"voxel_size": None}}
"""What else recipes set: the paper's adapter goes with its backbone, and the laptop's filter no voxels."""

Meter = Callable[[Callable[[], Any]], tuple[Any, float]]  # a call's result, and its milliseconds or multiply-adds


def milliseconds(run: Callable[[], Any], cuda: bool) -> tuple[Any, float]:
    """Result and time of a call."""
    if not cuda:
        start = time.perf_counter()
        return run(), 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = run()
    end.record()
    torch.cuda.synchronize()
    return result, begin.elapsed_time(end)


def multiply_adds(run: Callable[[], Any]) -> tuple[Any, float]:
    """Result and multiply-adds of a call."""
    results: list[Any] = []
    amount = counted(lambda: results.append(run()))
    return results[0], float(amount)


def stages(model: Detector) -> Iterator[tuple[str, Any, str]]:
    """(stage, owner, attribute) of every function that `score` calls; no two contain each other."""
    yield "canonical order", patches, "order_seen"
    yield "voxel filter", patches, "voxel_filter"
    yield "FPS", patches, "farthest_point_sampling"
    yield "kNN + grouping", patches, "knn"
    yield "kNN + grouping", patches, "gather_points"
    yield "backbone: mini-PointNet", model.backbone, "embed_nested"
    yield "backbone: transformer", model.backbone, "transform"
    if isinstance(model, Mamba3dAD):
        yield "GSAS", model, "_sort"
        yield "adapter", model, "_features"
        yield "discriminator", model.discriminator, "forward"
        yield "reprojection", mamba3dad, "patch_scores"
        yield "reprojection", mamba3dad, "smooth_in_space"
        yield "reprojection", model, "_to_file"
    else:
        yield "geometry", sedir, "geometry_descriptor"
        yield "encoder, global token, decoder", model, "reconstruct"
        yield "smoothing and reprojection", model, "scoring"


@contextmanager
def metered(model: Detector, meter: Meter) -> Iterator[dict[str, float]]:
    """What each stage of the runs inside takes, summed."""
    sums = dict.fromkeys((stage for stage, _, _ in stages(model)), 0.0)

    def wrapped(stage: str, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        result, amount = meter(lambda: function(*arguments, **settings))
        sums[stage] += amount
        return result

    with ExitStack() as stack:
        for stage, owner, name in stages(model):
            function = getattr(owner, name)
            stack.enter_context(patch.object(owner, name, partial(wrapped, stage, function)))
        yield sums


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
    return 1e3 * size**3 / min(milliseconds(lambda: torch.mm(a, b), device.type == "cuda")[1] for _ in range(runs))


def report(recipe: str, model: Detector, batch: PointCloudBatch, repeats: int, rate: float) -> None:
    """Print one model's table."""
    os.environ.pop(POSES, None)  # a registration that lies on disk takes no time
    time_of = partial(milliseconds, cuda=batch.xyz.is_cuda)
    with metered(model, multiply_adds) as work:  # the first run also warms up
        model.score(batch)
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        with metered(model, time_of) as times:
            _, total = time_of(lambda: model.score(batch))
        runs.append({**times, "rest": total - sum(times.values())})
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
