from __future__ import annotations

import csv
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "ops.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_ops", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_table_holds_the_ratio_of_the_medians(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = benchmark.Case("sleep", "30 ms", "sleep longer", lambda: time.sleep(0.09), lambda: time.sleep(0.03))
    monkeypatch.setattr(benchmark, "CASES", {"sleep": lambda: iter([case])})
    benchmark.main(["--repeats", "2", "--csv", str(tmp_path / "ops.csv")])
    (row,) = csv.DictReader((tmp_path / "ops.csv").open())
    assert row["operation"] == "sleep"
    assert row["runs"] == "2"
    assert float(row["ratio"]) == pytest.approx(float(row["baseline_ms"]) / float(row["ours_ms"]))
    assert float(row["baseline_ms"]) >= 90
    assert "sleep longer" in capsys.readouterr().out


def test_a_slow_baseline_runs_once(benchmark: ModuleType) -> None:
    case = benchmark.Case("sleep", "", "", lambda: time.sleep(0.02), lambda: None)
    assert benchmark.measure(case, repeats=50, budget=0.01).runs == 1


def test_an_unknown_operation_is_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--only", "fps,sorting"])
    assert "no operation sorting" in capsys.readouterr().err
