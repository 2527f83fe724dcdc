"""A grid of runs: expansion, resuming, and the table against the runs' own records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly3d.compare.compare import compare
from anomaly3d.compare.grid import Method, expand
from anomaly3d.errors import InputError

CONF = Path(__file__).parents[1] / "conf"
METRICS = ["o_auroc", "o_aupr", "p_auroc", "p_aupr"]


def test_a_grid_has_one_unified_run_and_one_per_category(tmp_path: Path) -> None:
    methods = {"A": Method(CONF / "sedir.yaml", {"model.lr": 0.5}), "B": Method(CONF / "mamba3dad.yaml")}
    runs = list(expand(methods, ["unified", "per-category"], [0, 1], ["x", "y"], {"data.root": "r"}, tmp_path))
    assert len(runs) == 2 * (1 + 2) * 2
    assert len({run.folder for run in runs}) == len(runs)
    assert [run.categories for run in runs[:6]] == [("x", "y")] * 2 + [("x",)] * 2 + [("y",)] * 2
    first = runs[0].arguments
    assert {"--model.lr=0.5", "--data.root=r", "--seed_everything=0", '--data.categories=["x", "y"]'} <= set(first)
    assert "--model.lr=0.5" not in runs[6].arguments
    assert len({run.fingerprint for run in runs}) == len(runs)


def test_published_values_of_no_metric_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'A': no metric auroc; choose from o_auroc"):
        compare({"A": Method(CONF / "sedir.yaml", published={"auroc": 81.0})}, tmp_path)


def mtimes(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*/*/*/record.json")}


@pytest.mark.slow
def test_compare_runs_both_settings_and_keeps_what_is_finished(tmp_path: Path, parts: Path) -> None:
    methods = {"SeDiR": Method(CONF / "sedir.yaml"), "Mamba3dAD": Method(CONF / "mamba3dad.yaml")}
    overrides = {"data.root": str(parts), "trainer.max_epochs": 1, "trainer.limit_val_batches": 0}
    compare(methods, tmp_path, overrides=overrides, jobs=2)

    table = pd.read_csv(tmp_path / "comparison.csv")
    assert list(zip(table["method"], table["setting"], strict=True)) == [
        ("SeDiR", "unified"),
        ("SeDiR", "per-category"),
        ("Mamba3dAD", "unified"),
        ("Mamba3dAD", "per-category"),
    ]
    for row in table.to_dict("records"):
        records = [
            json.loads(f.read_text()) for f in tmp_path.glob(f"runs/{row['method']}/{row['setting']}/*/*/record.json")
        ]
        results = pd.DataFrame([result for record in records for result in record["results"]])
        assert sorted(results["category"]) == ["flange", "gear"]
        for metric in METRICS:
            assert row[f"{metric}_mean"] == pytest.approx(np.mean(results[metric]))
    assert (tmp_path / "heatmaps.png").stat().st_size > 50_000
    assert "SeDiR" in (tmp_path / "comparison.md").read_text()

    before, text = mtimes(tmp_path), (tmp_path / "comparison.md").read_text()
    compare(methods, tmp_path, overrides=overrides, jobs=2)
    assert mtimes(tmp_path) == before
    assert (tmp_path / "comparison.md").read_text() == text

    only = {"SeDiR": Method(CONF / "sedir.yaml", {"model.lr": 0.01})}
    compare(only, tmp_path, settings=["unified"], overrides=overrides)
    changed = {file for file, time_ns in mtimes(tmp_path).items() if before[file] != time_ns}
    assert {str(file.relative_to(tmp_path / "runs")) for file in changed} == {"SeDiR/unified/all/seed0/record.json"}


@pytest.mark.slow
def test_a_killed_comparison_goes_on_from_the_last_epoch(tmp_path: Path, parts: Path) -> None:
    command = [
        *(sys.executable, "-m", "anomaly3d", "compare", f"--output={tmp_path}", "--settings=[unified]"),
        f'--methods={{"SeDiR": {{"config": "{CONF / "sedir.yaml"}"}}}}',
        f'--overrides={{"data.root": "{parts}", "trainer.max_epochs": 40, "trainer.limit_val_batches": 0}}',
    ]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)  # a group of its own
    progress = tmp_path / "runs/SeDiR/unified/all/seed0/progress.json"
    deadline = time.monotonic() + 120

    def epoch() -> int:
        return json.loads(progress.read_text())["epoch"]

    while not (progress.exists() and epoch()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = epoch()
    assert 1 <= reached < 40, "killed too late or too early to show anything"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs/SeDiR/unified/all/seed0"
    second = pd.read_csv(folder / "log/version_1/metrics.csv").dropna(subset=["train/loss"])["epoch"].to_numpy()
    # An epoch's checkpoint is written before the progress says so.
    assert reached <= second.min() <= reached + 3  # every tenth step is logged; an epoch has four
    assert second.max() == 39
    assert json.loads((folder / "record.json").read_text())["log"] == "log/version_1"


@pytest.mark.slow
def test_a_failing_run_is_named_with_the_end_of_its_log(tmp_path: Path, parts: Path) -> None:
    methods = {"SeDiR": Method(CONF / "sedir.yaml", {"model.detector.init_args.group_size": 4000})}
    with pytest.raises(InputError, match=r"SeDiR, unified, seed 0' failed(.|\n)*points"):
        compare(methods, tmp_path, settings=["unified"], overrides={"data.root": str(parts)})
    assert not (tmp_path / "comparison.csv").exists()


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such recipe \(method 'SeDiR'\)"):
        compare({"SeDiR": Method(Path("nowhere.yaml"))}, tmp_path)
    with pytest.raises(InputError, match="none given"):
        compare({}, tmp_path)
