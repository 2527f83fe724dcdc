"""The stages of benchmarks/latency.py are those of the detectors: a function renamed or not called is noticed."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anomaly3d.models.base import Detector
from anomaly3d.models.components import patches
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PointCloudBatch


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("latency")


def mamba3dad() -> Detector:
    return Mamba3dAD(
        backbone_size="tiny", backbone_weights="random", num_groups=16, group_size=16, slots=32, smooth_sigma=1.0
    ).eval()


def sedir() -> Detector:
    model = SeDiR(
        backbone_size="tiny", backbone_weights="random", num_groups=16, group_size=16, width=32, voxel_size=0.001
    )
    model.configure(["a", "b"])
    return model.eval()


@pytest.mark.parametrize("build", [mamba3dad, sedir])
def test_every_stage_is_met_and_nothing_is_changed(latency: ModuleType, build: type[Detector]) -> None:
    model, batch = build(), PointCloudBatch.pack([torch.randn(400, 3)], ["c/test/0"])
    sampling, expected = patches.farthest_point_sampling, model.score(batch)
    start = time.perf_counter()
    with latency.metered(model, lambda run: latency.milliseconds(run, cuda=False)) as times:
        found = model.score(batch)
    total = 1e3 * (time.perf_counter() - start)
    assert torch.equal(found.point_scores, expected.point_scores)
    assert all(ms > 0 for ms in times.values()), times
    assert 0.3 * total < sum(times.values()) <= total
    assert patches.farthest_point_sampling is sampling
    assert not any(name in vars(model) for name in ("_sort", "_features", "_to_file", "reconstruct"))
    assert torch.equal(model.score(batch).point_scores, expected.point_scores)


def test_multiply_adds_are_counted(latency: ModuleType) -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 11)
    product, amount = latency.multiply_adds(lambda: a @ b)
    assert torch.equal(product, a @ b)
    assert amount == 5 * 7 * 11
