"""Every row of the grid of Mamba3dAD's ablations builds, and a training step of it is another's than the whole's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.types import PointCloudBatch

ROOT = Path(__file__).parents[3]
GRID = yaml.safe_load((ROOT / "configs" / "benchmark" / "mamba3dad_ablations.yaml").read_text())["methods"]
PREFIX = "model.detector.init_args."


ALIKE = (
    ("GSAS, slots that mix", "softmax assignment", "Hungarian assignment"),
    ("no sorter", "random order", "coordinate order"),
    ("noise on features, sparse", "noise on features, dense", "noise on features, by patch"),
    ("noise on features, sparse", "noise on features, sparse, standardised"),
    ("GSAS, affinity as a product", "GSAS, independent queries"),
)


@cache
def losses(row: str) -> tuple[float, ...]:
    """Of a first and a second cloud; a name that Mamba3dAD does not know is a TypeError."""
    recipe = yaml.safe_load((ROOT / GRID[row]["config"]).read_text())["model"]["detector"]["init_args"]
    overrides: dict[str, Any] = GRID[row].get("overrides", {})
    assert all(name.startswith(PREFIX) for name in overrides)
    torch.manual_seed(0)
    detector = Mamba3dAD(**recipe | {name.removeprefix(PREFIX): value for name, value in overrides.items()})
    detector.configure(["ball"])
    found = []
    for name in ("a", "b"):
        cloud = torch.nn.functional.normalize(torch.randn(1500, 3), dim=1)
        found.append(detector.loss(PointCloudBatch.pack([cloud], [name], category=[0], label=[0]))["loss"].item())
    return tuple(found)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in GRID if row not in ("Mamba3dAD", "no smoothing")])
def test_a_row_trains_otherwise_than_the_whole(row: str) -> None:
    assert all(torch.tensor(losses(row)).isfinite())
    assert losses(row) != losses("Mamba3dAD")
    # Nor as the rows that share its sizes and draws, and differ by this one choice.
    assert all(losses(row) != losses(other) for group in ALIKE if row in group for other in group if other != row)
