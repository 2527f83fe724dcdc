"""The stages of benchmarks/latency.py are those of the detectors: a stage that is left out is noticed."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anomaly3d.models.base import Detector
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.ops.stages import OTHER, measured
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


COMMON = {"canonical order", "voxel filter", "FPS", "kNN and grouping", "mini-PointNet", "transformer", "reprojection"}
OF_SEDIR = {"geometry", "encoder and decoder"}


@pytest.mark.parametrize(("build", "stages"), [(mamba3dad, {"GSAS", "adapter", "discriminator"}), (sedir, OF_SEDIR)])
def test_every_stage_is_met_and_nothing_is_changed(
    latency: ModuleType, build: Callable[[], Detector], stages: set[str]
) -> None:
    model, batch = build(), PointCloudBatch.pack([torch.randn(400, 3)], ["c/test/0"])
    expected = model.score(batch)
    now, times = latency.clock(cuda=False), {}
    start = time.perf_counter()
    with measured(now, times):
        found = model.score(batch)
    total = 1e3 * (time.perf_counter() - start)
    assert torch.equal(found.point_scores, expected.point_scores)
    assert set(times) == {*COMMON, *stages, OTHER}
    assert all(ms > 0 for ms in times.values()), times
    assert times[OTHER] < sum(times.values()) <= total


def test_a_report_has_every_stage(latency: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    latency.report("sedir_tiny", sedir(), PointCloudBatch.pack([torch.randn(400, 3)], ["c"]), repeats=1, rate=1e9)
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert {*COMMON, *OF_SEDIR, OTHER} < set(rows)
