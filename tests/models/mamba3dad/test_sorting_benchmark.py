"""What benchmarks/sorting.py measures by: a wrong ruler would make any order look good."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def sorting(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    return importlib.import_module("sorting")


def test_hilberts_curve_visits_every_cell_once_in_steps_to_a_neighbour(sorting: ModuleType) -> None:
    axis = torch.arange(8.0)
    cells = torch.cartesian_prod(axis, axis, axis)[torch.randperm(512)]
    row = sorting.hilbert(cells, bits=3)
    assert sorted(row.tolist()) == list(range(512))
    assert (cells[row[1:]] - cells[row[:-1]]).abs().sum(dim=1).tolist() == [1.0] * 511


def test_scores_tell_a_curves_own_order_from_a_random_one_and_from_repeats(sorting: ModuleType) -> None:
    places = torch.zeros(400, 3)
    places[:, 0] = torch.linspace(0, 1, 400)
    step, near, different = sorting.scores(torch.arange(400), places)
    assert step == pytest.approx((1 / 399) / torch.cdist(places, places).mean().item(), rel=1e-3)
    assert (near, different) == (1.0, 1.0)
    step, near, different = sorting.scores(torch.randperm(400), places)
    assert step == pytest.approx(1, abs=0.15)
    assert near == pytest.approx(2 / 16, abs=0.04)
    step, near, different = sorting.scores(torch.arange(400) // 4, places)
    assert math.isnan(near)
    assert different == 0.25
