"""Small data sets that the tests write for themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomaly3d.data.pcd import write_pcd


def sphere(rng: np.random.Generator, count: int = 600, radius: float = 10.0) -> np.ndarray:
    """Points (count, 3) spread evenly over a sphere, float32."""
    vectors = rng.normal(size=(count, 3))
    return (radius * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_truth(
    path: Path, xyz: np.ndarray, mask: np.ndarray, delimiter: str = ",", order: np.ndarray | None = None
) -> None:
    """A ground-truth file of rows x, y, z, label with six decimals."""
    rows = np.column_stack([xyz, mask])[slice(None) if order is None else order]
    np.savetxt(path, rows, delimiter=delimiter, fmt=["%.6f", "%.6f", "%.6f", "%d"])


def write_anomaly_shapenet(
    root: Path, categories: tuple[str, ...] = ("cap0", "cup1"), truth: str = "GT", seed: int = 0
) -> Path:
    """Per category 2 templates, 2 normal and 2 defective clouds; truth rows shuffled, comma separated."""
    rng = np.random.default_rng(seed)
    for category in categories:
        folder = root / category
        for name in ("train", "test", truth):
            (folder / name).mkdir(parents=True)
        for i in range(2):
            write_pcd(folder / "train" / f"{category}_template{i}.pcd", sphere(rng, 900))
            write_pcd(folder / "test" / f"{category}_positive{i}.pcd", sphere(rng))
        for defect in ("bulge0", "crak1"):
            xyz = sphere(rng)
            write_pcd(folder / "test" / f"{category}_{defect}.pcd", xyz)
            write_truth(folder / truth / f"{category}_{defect}.txt", xyz, xyz[:, 2] > 9, order=rng.permutation(600))
    return root


def write_real3d_ad(root: Path, categories: tuple[str, ...] = ("duck",), truth: str = "gt", seed: int = 0) -> Path:
    """Per category 2 templates and clouds of every suffix of the release; truth space separated."""
    rng = np.random.default_rng(seed)
    for category in categories:
        folder = root / category
        for name in ("train", "test", truth):
            (folder / name).mkdir(parents=True)
        for number in (107, 64):
            write_pcd(folder / "train" / f"{number}_template.pcd", sphere(rng, 900))
        normal = ("64_good", "64_good_cut", "70_good_copy")
        for stem in normal:
            write_pcd(folder / "test" / f"{stem}.pcd", sphere(rng))
        for stem in ("65_bulge", "65_bulge_cut", "66_sink", "66_sink_copy", "67_bulges", "68_sinks", "69_hybrid"):
            xyz = sphere(rng)
            write_pcd(folder / "test" / f"{stem}.pcd", xyz)
            write_truth(folder / truth / f"{stem}.txt", xyz, xyz[:, 2] > 9, delimiter=" ")
    return root
