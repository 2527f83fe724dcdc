from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "token_encoder.py"))


def test_the_table_says_how_fast_and_how_exact(benchmark: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    benchmark["main"](["--groups", "8", "--neighbours", "4", "8", "16", "--size", "tiny", "--repeats", "1"])
    rows = [line.rsplit(maxsplit=5) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "Conv1d, BatchNorm1d",
        "Linear, BatchNorm1d",
        "folded, nested",
        "folded, nested, bfloat16",
    ]
    assert rows[0][3] == "1.00x"
    assert [float(row[5]) < limit for row, limit in zip(rows, (1e-9, 1e-5, 1e-5, 5e-2), strict=True)] == [True] * 4


def test_multiply_adds_are_counted_per_centre(benchmark: dict[str, Any]) -> None:
    plain, folded = benchmark["multiply_adds"]((128, 256, 512, 384), (128, 256, 512))
    assert plain == 896 * (3 * 128 + 128 * 256 + 512 * 512 + 512 * 384)
    assert folded == 512 * (3 * 128 + 128 * 768) + 3 * 256 * 512 + 896 * 512 * 384
