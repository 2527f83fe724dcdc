"""How much faster each operation is than the way it is usually written.

    python benchmarks/ops.py [--only fps,knn] [--repeats 5] [--csv ops.csv]

Baseline and ours run alternately in one process; the ratio is that of their medians. Ratios carry over between
machines better than times do, and both say little on a machine that is busy.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly3d.ops.canonical import canonical_order, canonical_order_torch
from anomaly3d.ops.fps import farthest_point_sampling
from anomaly3d.ops.grouping import gather_points, interpolate
from anomaly3d.ops.knn import knn
from anomaly3d.ops.normals import estimate_normals
from anomaly3d.ops.scan import Rotation, lti_scan, naive_lti_scan
from anomaly3d.ops.sinkhorn import sinkhorn
from anomaly3d.ops.voxel import voxel_filter, voxel_filter_torch


@dataclass(frozen=True)
class Case:
    """Two callables that compute the same."""

    operation: str
    size: str
    baseline: str
    run_baseline: Callable[[], Any]
    run_ours: Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """A row of the table, with the environment it was measured in; times are medians in milliseconds."""

    operation: str
    size: str
    baseline: str
    baseline_ms: float
    ours_ms: float
    ratio: float
    runs: int
    torch_version: str = torch.__version__
    threads: int = torch.get_num_threads()


def surface(n: int, seed: int = 0) -> Tensor:
    """An ellipsoid's surface with noise of 0.2 %, in the unit ball: clouds of scans are surfaces, not volumes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    x = x / x.norm(dim=1, keepdim=True) * torch.tensor([1.0, 0.7, 0.4])
    return x + 0.002 * torch.randn(n, 3, generator=generator)


def fps_cases() -> Iterator[Case]:
    """Farthest-point sampling against the loop over torch operations."""
    for n in (100_000, 1_000_000):
        xyz = surface(n)[None]
        yield Case(
            "fps",
            f"1024 of {n}",
            "torch loop",
            lambda xyz=xyz: farthest_point_sampling(xyz, 1024, backend="torch"),
            lambda xyz=xyz: farthest_point_sampling(xyz, 1024),
        )


def knn_cases() -> Iterator[Case]:
    """Neighbourhoods of 1024 centres against cdist and topk."""
    xyz = surface(100_000)[None]
    centres = xyz[:, :1024]
    yield Case(
        "knn",
        "1024 x 128 in 100000",
        "cdist + topk",
        lambda: torch.cdist(centres, xyz).topk(128, largest=False),
        lambda: knn(centres, xyz, 128),
    )


def interpolate_cases() -> Iterator[Case]:
    """Scores of 1024 centres carried to every point against cdist and topk in chunks."""
    target, values = surface(1_000_000), torch.rand(1024)
    source = target[:1024]

    def baseline() -> Tensor:
        parts = []
        for part in target.split(65_536):
            distance, index = torch.cdist(part, source).topk(3, largest=False)
            weight = 1 / distance.clamp_min(1e-8)
            parts.append((values[index] * weight).sum(1) / weight.sum(1))
        return torch.cat(parts)

    yield Case("interpolate", "1024 to 1000000", "cdist + topk", baseline, lambda: interpolate(values, source, target))


def voxel_cases() -> Iterator[Case]:
    """The voxel filter against open3d's, conversions of the cloud included, and against torch.unique."""
    xyz = surface(1_000_000)
    for size in (0.002, 0.01):
        try:
            import open3d
        except (ImportError, OSError) as error:
            print(f"voxel against open3d left out: {error}", file=sys.stderr)
        else:

            def filter_open3d(size: float = size) -> Tensor:
                cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz.double().numpy()))
                return torch.from_numpy(np.asarray(cloud.voxel_down_sample(size).points))

            yield Case(
                "voxel", f"{len(xyz)}, {size}", "open3d", filter_open3d, lambda size=size: voxel_filter(xyz, size)
            )
        yield Case(
            "voxel",
            f"{len(xyz)}, {size}",
            "torch.unique",
            lambda size=size: voxel_filter_torch(xyz, size),
            lambda size=size: voxel_filter(xyz, size),
        )


def canonical_cases() -> Iterator[Case]:
    """Lexicographic order against three stable sorts."""
    xyz = surface(1_000_000)
    yield Case(
        "canonical", "1000000", "3 stable sorts", lambda: canonical_order_torch(xyz), lambda: canonical_order(xyz)
    )


def normals_cases() -> Iterator[Case]:
    """Normals against neighbours by cdist and the same decomposition."""
    xyz = surface(20_000)

    def baseline() -> Tensor:
        index = torch.cat([torch.cdist(part, xyz).topk(30, largest=False).indices for part in xyz.split(2048)])
        neighbours = gather_points(xyz[None], index[None])[0].double()
        neighbours = neighbours - neighbours.mean(1, keepdim=True)
        return torch.linalg.eigh(neighbours.mT @ neighbours).eigenvectors[..., 0]

    yield Case("normals", "20000, 30 nn", "cdist + topk + eigh", baseline, lambda: estimate_normals(xyz, 30))


def sinkhorn_cases() -> Iterator[Case]:
    """The plan of Mamba3dAD's default size, forward and backward, against log-space matrices."""
    affinity = torch.randn(1, 1536, 1024, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(1, 1536, 1024, generator=torch.Generator().manual_seed(1))

    def train(method: str) -> Any:
        return torch.autograd.grad(sinkhorn(affinity, method=method), affinity, weight)  # pyright: ignore[reportArgumentType]

    def infer(method: str) -> Tensor:
        return sinkhorn(affinity.detach(), method=method)  # pyright: ignore[reportArgumentType]

    yield Case("sinkhorn", "1536 x 1024 x 8", "log space", lambda: infer("log"), lambda: infer("auto"))
    yield Case("sinkhorn + gradient", "1536 x 1024 x 8", "log space", lambda: train("log"), lambda: train("auto"))


def scan_cases() -> Iterator[Case]:
    """Forward and backward of the state's recurrence against the loop over u[:, t] and over u.unbind(1)."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(8, 1024, 256, generator=generator).requires_grad_()
    rotation = Rotation(torch.tensor(0.9), torch.rand(128, generator=generator).requires_grad_())
    dense = rotation.dense().detach().requires_grad_()

    def indexed(u: Tensor, a: Tensor) -> Tensor:
        h, states = u.new_zeros(u.shape[0], u.shape[2]), []
        for t in range(u.shape[1]):
            h = h @ a.mT + u[:, t]
            states.append(h)
        return torch.stack(states, 1)

    def train(scan: Callable[..., Tensor], transition: Any) -> Any:
        parameter = transition.angles if isinstance(transition, Rotation) else transition
        return torch.autograd.grad(scan(u, transition).sum(), (u, parameter))

    for name, scan in (("indexed loop", indexed), ("unbind loop", naive_lti_scan)):
        for kind, transition in (("dense", dense), ("rotation", rotation)):
            yield Case(
                f"scan + gradient, {kind}",
                "8 x 1024 x 256",
                f"{name}, dense",
                lambda scan=scan: train(scan, dense),
                lambda transition=transition: train(lti_scan, transition),
            )


def patches_cases() -> Iterator[Case]:
    """Voxel filter, FPS and kNN together, as a cloud becomes patches, against torch loops."""
    for n in (100_000, 1_000_000):
        xyz = surface(n)

        def baseline(xyz: Tensor = xyz) -> Tensor:
            cloud = voxel_filter_torch(xyz, 0.001)[None]
            centres = gather_points(cloud, farthest_point_sampling(cloud, 1024, backend="torch"))
            return torch.cdist(centres, cloud).topk(128, largest=False).indices

        def ours(xyz: Tensor = xyz) -> Tensor:
            cloud = voxel_filter(xyz, 0.001)[None]
            return knn(gather_points(cloud, farthest_point_sampling(cloud, 1024)), cloud, 128)[1]

        yield Case("voxel + fps + knn", f"1024 x 128 of {n}", "torch loops", baseline, ours)


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "fps": fps_cases,
    "knn": knn_cases,
    "interpolate": interpolate_cases,
    "voxel": voxel_cases,
    "canonical": canonical_cases,
    "normals": normals_cases,
    "sinkhorn": sinkhorn_cases,
    "scan": scan_cases,
    "patches": patches_cases,
}


def measure(case: Case, repeats: int, budget: float = 60.0) -> Timing:
    """Medians of alternating runs: `repeats` of them, fewer when `budget` seconds have gone by, at least one."""

    def seconds(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    seconds(case.run_ours)  # imports, threads, caches
    pairs: list[tuple[float, float]] = []
    while len(pairs) < repeats and sum(map(sum, pairs)) < budget:
        pairs.append((seconds(case.run_baseline), seconds(case.run_ours)))
    baseline, ours = (1e3 * median(times) for times in zip(*pairs, strict=True))
    return Timing(case.operation, case.size, case.baseline, baseline, ours, baseline / ours, len(pairs))


def main(arguments: list[str] | None = None) -> None:
    """Print the table, row by row as it is measured, and write it to a CSV file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"comma-separated subset of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else list(CASES)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if unknown := set(chosen) - set(CASES):
        parser.error(f"no operation {', '.join(sorted(unknown))}: choose from {', '.join(CASES)}")

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of at most {options.repeats} runs")
    print(f"{'operation':28}{'size':24}{'baseline':24}{'baseline ms':>12}{'ours ms':>10}{'ratio':>8}")
    rows = []
    for name in chosen:
        for case in CASES[name]():
            rows.append(row := measure(case, options.repeats))
            print(
                f"{row.operation:28}{row.size:24}{row.baseline:24}"
                f"{row.baseline_ms:12.1f}{row.ours_ms:10.1f}{row.ratio:7.1f}x",
                flush=True,
            )
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
