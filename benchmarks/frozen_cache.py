"""An epoch of SeDiR with the frozen tokens of the training clouds cached, against one that encodes at every step.

    python benchmarks/frozen_cache.py [--recipe FILE] [--clouds 6] [--points 12000] [--backbone base]

Training steps with AdamW, batch 1, on random ellipsoids. The first epoch with the cache fills it and is timed on its
own. Both detectors start from one seed, and their losses have to be equal bit for bit: otherwise this ends with an
error.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PointCloudBatch


def clouds(count: int, points: int) -> list[PointCloudBatch]:
    """Random ellipsoids, each a batch of its own."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for i in range(count):
        directions = torch.nn.functional.normalize(torch.randn(points, 3, generator=generator), dim=1)
        xyz = directions * (0.5 + torch.rand(3, generator=generator))
        batches.append(PointCloudBatch.pack([xyz], [f"ellipsoid/{i}"], category=[i % 2]))
    return batches


def epochs(
    settings: dict[str, Any], gb: float, batches: list[PointCloudBatch], count: int
) -> list[tuple[float, float]]:
    """(seconds, sum of the losses) of each of `count` epochs."""
    torch.manual_seed(0)
    detector = SeDiR(**{**settings, "frozen_cache_gb": gb}).train()
    detector.configure(["even", "odd"])
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-4)
    outcomes = []
    for _ in range(count):
        begin, total = time.perf_counter(), 0.0
        for batch in batches:
            optimizer.zero_grad()
            loss = detector.loss(batch)["loss"]
            loss.backward()
            optimizer.step()
            total += loss.item()
        outcomes.append((time.perf_counter() - begin, total))
    return outcomes


def main(arguments: list[str] | None = None) -> None:
    """Print the table row of one recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("configs/experiment/sedir_synthetic_unified.yaml"))
    parser.add_argument("--clouds", type=int, default=6)
    parser.add_argument("--points", type=int, default=12_000)
    parser.add_argument("--backbone", help="architecture with random weights, such as base, instead of the recipe's")
    args = parser.parse_args(arguments)
    settings: dict[str, Any] = yaml.safe_load(args.recipe.read_text())["model"]["detector"]["init_args"]
    if args.backbone:
        settings |= {"backbone_size": args.backbone, "backbone_weights": "random"}
    batches = clouds(args.clouds, args.points)
    plain = epochs(settings, 0.0, batches, 2)
    cached = epochs(settings, 4.0, batches, 3)
    if [loss for _, loss in plain] != [loss for _, loss in cached[:2]]:
        raise SystemExit("the losses differ: the cache is wrong")
    slow, first, fast = plain[1][0], cached[0][0], min(seconds for seconds, _ in cached[1:])
    print(f"{args.recipe.stem}, {args.clouds} clouds of {args.points} points, {torch.get_num_threads()} threads")
    print("| encoding at every step | first epoch with the cache | later epochs | ratio |\n|--:|--:|--:|--:|")
    print(f"| {slow:.2f} s | {first:.2f} s | {fast:.2f} s | {slow / fast:.1f} |")


if __name__ == "__main__":
    main()
