"""A grid of runs: expansion, resuming, and the table against the runs' own records."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly3d.__main__ import main
from anomaly3d.compare import pictures
from anomaly3d.compare.collect import provenance_lines, ranked
from anomaly3d.compare.compare import compare, grid
from anomaly3d.compare.execute import failure
from anomaly3d.compare.grid import Method, Run, Split, expand
from anomaly3d.compare.lock import only_one
from anomaly3d.errors import InputError
from anomaly3d.models.backbones.weights import SHIPPED
from anomaly3d.report.pictures import CloudRow

CONF = Path(__file__).parents[1] / "conf"
METRICS = ["o_auroc", "o_aupr", "p_auroc", "p_aupr"]


def test_a_grid_has_one_unified_run_and_one_per_category(tmp_path: Path) -> None:
    methods = {"A": Method(CONF / "sedir.yaml", {"model.lr": 0.5}), "B": Method(CONF / "mamba3dad.yaml")}
    runs = list(
        expand(methods, ["unified", "per-category"], [0, 1], {"x": "1", "y": "2"}, {"data.root": "r"}, tmp_path)
    )
    assert len(runs) == 2 * (1 + 2) * 2
    assert len({run.folder for run in runs}) == len(runs)
    assert [run.categories for run in runs[:6]] == [("x", "y")] * 2 + [("x",)] * 2 + [("y",)] * 2
    first = runs[0].arguments
    assert {"--model.lr=0.5", "--data.root=r", "--seed_everything=0", '--data.categories=["x", "y"]'} <= set(first)
    assert "--model.lr=0.5" not in runs[6].arguments
    assert len({run.fingerprint for run in runs}) == len(runs)


def test_the_categories_of_a_run_stand_behind_files_that_would_set_them_again(tmp_path: Path) -> None:
    overrides = {"data.categories": "[x, y]", "data": "configs/data/real3d_ad.yaml", "data.root": "r"}
    methods = {"A": Method(CONF / "sedir.yaml", {"model.lr": 0.5})}
    runs = list(expand(methods, ["unified", "per-category"], [0], {"x": "1", "y": "2"}, overrides, tmp_path))
    last = [run.arguments[-1] for run in runs]
    assert last == ['--data.categories=["x", "y"]', '--data.categories=["x"]', '--data.categories=["y"]']
    probe = Run("A", "unified", 0, (), CONF / "sedir.yaml", overrides, tmp_path)
    assert probe.arguments[-1] == "--data.categories=[x, y]"


def test_a_row_may_have_seeds_of_its_own(tmp_path: Path) -> None:
    methods = {"A": Method(CONF / "sedir.yaml"), "B": Method(CONF / "sedir.yaml", seeds=[7])}
    runs = expand(methods, ["unified"], [0, 1], {"x": ""}, {}, tmp_path)
    assert [(run.method, run.seed) for run in runs] == [("A", 0), ("A", 1), ("B", 7)]


def test_a_part_that_changes_makes_another_run(tmp_path: Path) -> None:
    part = tmp_path / "model.yaml"
    part.write_text("lr: 0.1\n")
    (run,) = expand({"A": Method(CONF / "sedir.yaml", {"model": str(part)})}, ["unified"], [0], {"x": ""}, {}, tmp_path)
    before = run.fingerprint
    assert run.fingerprint == before
    part.write_text("lr: 0.2\n")
    assert run.fingerprint != before


@pytest.mark.parametrize("text", ["x" * 300, "~nobody-of-that-name/x", "a\0b", "[broken", "line\nline"])
def test_texts_that_no_file_can_be_named_make_no_trouble(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    overrides = {"model.note": text, "model.part": str(broken)}
    (run,) = expand({"A": Method(CONF / "sedir.yaml", overrides)}, ["unified"], [0], {"x": ""}, {}, tmp_path)
    before = run.fingerprint
    broken.write_text("a: [2\n")
    assert run.fingerprint != before


def test_files_that_a_recipe_names_belong_to_the_run_however_deep(tmp_path: Path) -> None:
    weights, part, recipe = (tmp_path / name for name in ("backbone.pt", "model.yaml", "recipe.yaml"))
    weights.write_bytes(b"one")
    part.write_text(f"detector: {{init_args: {{backbone_weights: {weights}}}}}\n")
    recipe.write_text("model: model.yaml\ntrainer: {max_epochs: 1}\n")  # beside the recipe
    nested = {"model.detector": {"init_args": {"backbone_weights": str(weights)}}}
    runs = [
        next(iter(expand({"A": method}, ["unified"], [0], {"x": ""}, {}, tmp_path)))
        for method in (Method(recipe), Method(CONF / "sedir.yaml", nested))
    ]
    before = [run.fingerprint for run in runs]
    assert [run.fingerprint for run in runs] == before
    weights.write_bytes(b"two")
    changed = [run.fingerprint for run in runs]
    assert all(a != b for a, b in zip(before, changed, strict=True))
    part.write_text(part.read_text() + "lr: 0.2\n")
    assert [a == b for a, b in zip(changed, (run.fingerprint for run in runs), strict=True)] == [False, True]


@pytest.mark.parametrize(
    ("number", "content", "overrides"),
    [
        (0, "model: {{detector: {{class_path: {}.Mine}}}}\n", {}),
        (1, "model: {{detector: {}.Mine}}\n", {}),
        (2, "", {"model.detector.class_path": "{}.Mine"}),
        (3, "", {"trainer.callbacks": '[{{"class_path": "{}.Mine"}}]'}),
    ],
)
def test_the_code_of_a_class_of_ones_own_belongs_to_the_run(
    number: int, content: str, overrides: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = f"my_own_detector_{number}"
    source, recipe = tmp_path / f"{module}.py", tmp_path / "recipe.yaml"
    written = "class Mine: ...\n"
    source.write_text(written)
    (tmp_path / "failing_module.py").write_text("raise RuntimeError\n")
    recipe.write_text("trainer: {max_epochs: 1}\n" + content.format(module))
    changed = {key: value.format(module) for key, value in overrides.items()}
    (run,) = expand({"A": Method(recipe, changed)}, ["unified"], [0], {"x": ""}, {}, tmp_path)
    before = run.fingerprint
    assert run.fingerprint == before
    source.write_text(f"{written}two = 2\n")
    assert run.fingerprint != before
    for missing in ("no_such_module.Mine", "Mine", ".", "a..b", 3, "failing_module.Mine"):
        recipe.write_text(f"model: {{detector: {{class_path: {missing}}}}}\n")
        assert run.fingerprint != before


def test_a_large_file_is_read_once_as_long_as_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "backbone.pt"
    weights.write_bytes(b"one")
    (run,) = expand({"A": Method(CONF / "sedir.yaml", {"w": str(weights)})}, ["unified"], [0], {"x": ""}, {}, tmp_path)
    before, reads = run.fingerprint, []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: [reads.append(path), read(path)][1])
    assert run.fingerprint == before
    assert not reads
    weights.write_bytes(b"two and more")  # file systems' clocks tick slowly
    assert run.fingerprint != before
    assert reads == [weights]


def test_a_category_without_test_clouds_is_named_before_anything_runs(parts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")
    shutil.rmtree(root / "gear" / "test")
    methods, data = {"A": Method(CONF / "sedir.yaml")}, {"data.root": str(root)}
    with pytest.raises(InputError, match="no test clouds for gear"):
        list(grid(methods, tmp_path, ["unified", "per-category"], [0], data, "test"))
    with pytest.warns(UserWarning, match="no test clouds for gear"):
        assert len(list(grid(methods, tmp_path, ["unified"], [0], data, "test"))) == 1
    assert len(list(grid(methods, tmp_path, ["unified", "per-category"], [0], data, "validation"))) == 3


def test_undefined_means_rank_last() -> None:
    names = {"setting": "unified", "dataset": "d", "seed": 0, "protocol": "strict", "category": "c"}
    scores = {"a": 0.5, "b": float("nan"), "c": 0.9}
    rows = pd.DataFrame([{**names, "method": m, **dict.fromkeys(METRICS, value)} for m, value in scores.items()])
    assert ranked(rows, "o_auroc")["method"].tolist() == ["c", "a", "b"]


def test_a_killed_run_is_told_from_one_that_failed(tmp_path: Path) -> None:
    (run,) = expand({"A": Method(CONF / "sedir.yaml")}, ["unified"], [0], {"x": ""}, {}, tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "log.txt").write_text("--- started\nof the first attempt\n--- started\nof the second\n")
    killed, failed = failure(run, -9), failure(run, 1)
    assert "was killed by SIGKILL (out of memory?)" in killed
    assert "failed" in failed
    for said in (killed, failed):
        assert "of the second" in said
        assert "of the first attempt" not in said


@pytest.mark.parametrize("names", [["gear"], "gear"])
def test_the_chosen_categories_are_those_of_the_grid(parts: Path, tmp_path: Path, names: str | list[str]) -> None:
    methods, chosen = {"A": Method(CONF / "sedir.yaml")}, {"data.root": str(parts), "data.categories": names}
    runs = list(grid(methods, tmp_path, ["unified", "per-category"], [0], chosen, "test"))
    assert [run.categories for run in runs] == [("gear",), ("gear",)]


def test_other_data_make_another_run(parts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")

    def fingerprints(split: Split) -> list[str]:
        methods, data = {"A": Method(CONF / "sedir.yaml")}, {"data.root": str(root)}
        runs = list(grid(methods, tmp_path, ["unified", "per-category"], [0], data, split))
        assert [run.categories for run in runs[1:]] == [("flange",), ("gear",)]
        return [run.fingerprint for run in runs]

    before, validation = fingerprints("test"), fingerprints("validation")
    assert fingerprints("test") == before
    shutil.rmtree(root)
    shutil.copytree(parts, root)
    assert fingerprints("test") == before
    mask = next((root / "gear").rglob("GT/*.txt"))
    mask.write_text(mask.read_text().replace("0", "1", 1))
    assert [a == b for a, b in zip(fingerprints("test"), before, strict=True)] == [False, True, False]
    assert fingerprints("validation") == validation  # made of training clouds alone
    next((root / "gear" / "train").iterdir()).unlink()
    assert [a == b for a, b in zip(fingerprints("validation"), validation, strict=True)] == [False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": "auroc"}, "no metric 'auroc'; choose from o_auroc"),
        ({"jobs": -1}, "jobs: -1"),
        ({"seeds": [0, 0]}, r"seeds: \[0, 0\]; at least one, and each one once"),
        ({"seeds": []}, r"seeds: \[\]; at least one"),
        ({"seeds": [-1]}, r"seeds: \[-1\]; from 0"),
        ({"methods": {"A": Method(CONF / "sedir.yaml", seeds=[1, 1])}}, r"seeds of 'A': \[1, 1\]; at least one"),
        ({"methods": {"A": Method(CONF / "sedir.yaml", seeds=[2**32])}}, r"seeds of 'A': .*; from 0"),
        ({"settings": ["unified", "unified"]}, "settings: .*each one once"),
        ({"methods": {"../A": Method(CONF / "sedir.yaml")}}, "methods: '../A'; a run's folder is named after it"),
        ({"datasets": {"..": {}}}, "datasets: '..'"),
        ({"overrides": {"seed_everything": 7}}, "give --seeds"),
        ({"methods": {"A": Method(CONF / "sedir.yaml", {"data.categories": ["gear"]})}}, "A: data.categories"),
    ],
)
def test_what_would_be_ignored_or_fail_at_the_end_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compare(**{"methods": {"A": Method(CONF / "sedir.yaml")}, "output": tmp_path} | settings)
    assert not list(tmp_path.iterdir())


def test_a_picture_has_a_column_of_every_row_whatever_its_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"A": Method(CONF / "sedir.yaml"), "B": Method(CONF / "sedir.yaml", seeds=[0])}
    runs = list(expand(methods, ["unified"], [3, 4], {"x": ""}, {}, tmp_path))
    for run in runs:
        folder = run.folder / "log" / "point_scores"
        folder.mkdir(parents=True)
        (run.folder / "record.json").write_text(json.dumps({"log": "log"}))
        kept = {"xyz": np.zeros((5, 3)), "mask": np.zeros(5, bool), "object_score": 0.0, "sample_id": "x/test/a"}
        np.savez(folder / "a.npz", scores=np.full(5, run.seed), **kept)  # pyright: ignore[reportArgumentType]
    drawn: list[tuple[list[CloudRow], list[str]]] = []
    monkeypatch.setattr(pictures, "heatmap_grid", lambda rows, columns, target: drawn.append((rows, columns)))
    assert pictures.draw_heatmaps(runs, tmp_path / "out.png")
    ((rows, columns),) = drawn
    assert columns == ["A\nunified", "B\nunified"]
    assert [np.asarray(rows[0].heat[column].point_scores)[0] for column in columns] == [3, 0]


def test_runs_of_several_commits_are_told_apart() -> None:
    runs = [Run(name, "unified", 0, ("x",), CONF / "sedir.yaml", {}, Path(name)) for name in "ABB"]
    facts = {"backbone_sha256": None, "device": "cpu", "versions": {"torch": "2"}}
    lines = provenance_lines(runs, [facts | {"git_commit": commit} for commit in ("old", "old", "new")])
    assert lines[2:4] == [
        "A, B: 2 of the runs: Commit old; cpu; torch 2.",
        "B: 1 of the runs: Commit new; cpu; torch 2.",
    ]


def test_other_shipped_weights_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = expand({"A": Method(CONF / "sedir.yaml")}, ["unified"], [0], {"x": ""}, {}, tmp_path)
    before, other = run.fingerprint, tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    monkeypatch.setitem(SHIPPED, "small", other)
    assert run.fingerprint != before


def test_data_sets_have_runs_of_their_own(tmp_path: Path) -> None:
    methods = {"A": Method(CONF / "sedir.yaml", {"model.lr": 0.5})}
    one, two = (
        list(expand(methods, ["unified"], [0], {"x": ""}, {"data.root": name}, tmp_path, dataset=name))
        for name in ("here", "there")
    )
    assert one[0].folder == tmp_path / "runs/here/A/unified/all/seed0"
    assert two[0].folder == tmp_path / "runs/there/A/unified/all/seed0"
    assert two[0].name == "there, A, unified, seed 0"


def test_published_values_do_not_stand_beside_several_data_sets(tmp_path: Path) -> None:
    methods = {"A": Method(CONF / "sedir.yaml", published={"o_auroc": 81.0})}
    with pytest.raises(InputError, match="published values are of one data set"):
        compare(methods, tmp_path, datasets={"one": {}, "two": {}})


def test_published_values_of_no_metric_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'A': no metric auroc; choose from o_auroc"):
        compare({"A": Method(CONF / "sedir.yaml", published={"auroc": 81.0})}, tmp_path)


def test_published_tables_of_another_data_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Path(__file__).parents[2] / "benchmarks/reported/sedir_per_category.csv"
    methods = f'--methods={{"SeDiR": {{"config": "{CONF / "sedir.yaml"}"}}}}'
    with pytest.raises(SystemExit) as stop:
        main(["compare", methods, f"--output={tmp_path}", f"--reported.files=[{table}]", "--reported.dataset=demo"])
    assert stop.value.code == 2
    assert "no data set 'demo' in the tables; choose from Real3D-AD, Anomaly-ShapeNet" in capsys.readouterr().err


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
    assert (tmp_path / "costs.md").read_text().count("| SeDiR") == 2
    assert (tmp_path / "decisions.md").read_text().count("| SeDiR") == 2
    for name in ("costs.md", "decisions.md"):
        assert "\nCommit " in (tmp_path / name).read_text()
    facts = pd.read_csv(tmp_path / "runs.csv")
    assert len(facts) == 8  # 2 methods x 2 settings x 2 categories
    required = ["protocol", "setting", "seed", "backbone_weights", "backbone_sha256", "ops_backend", "versions"]
    required += ["git_commit", "config_sha256", "train_seconds", "test_seconds", "peak_memory_mib", "device"]
    assert facts[[name for name in required if name != "git_commit"]].notna().to_numpy().all()
    assert set(required) <= set(facts.columns)

    before, text = mtimes(tmp_path), (tmp_path / "comparison.md").read_text()
    compare(methods, tmp_path, overrides=overrides, jobs=2)
    assert mtimes(tmp_path) == before
    assert (tmp_path / "comparison.md").read_text() == text

    only = {"SeDiR": Method(CONF / "sedir.yaml", {"model.lr": 0.01})}
    compare(only, tmp_path, settings=["unified"], overrides=overrides)
    changed = {file for file, time_ns in mtimes(tmp_path).items() if before[file] != time_ns}
    assert {str(file.relative_to(tmp_path / "runs")) for file in changed} == {"SeDiR/unified/all/seed0/record.json"}


@pytest.mark.slow
def test_a_grid_over_two_data_sets_has_a_table_and_a_picture_of_each(tmp_path: Path, parts: Path) -> None:
    """The second set is the first one's gears, in another folder: its row must be that of the gears alone."""
    other = tmp_path / "gears"
    shutil.copytree(parts / "gear", other / "gear")
    methods = {"BTF": Method(CONF.parents[1] / "configs/experiment/btf-raw_synthetic_unified.yaml")}
    datasets: dict[str, Any] = {"both": {"data.root": str(parts)}, "gears": {"data.root": str(other)}}
    compare(methods, tmp_path / "out", settings=["unified"], datasets=datasets)
    table = pd.read_csv(tmp_path / "out/comparison.csv")
    assert list(table["dataset"]) == ["both", "gears"]
    assert list(table["categories"]) == [2, 1]
    facts = pd.read_csv(tmp_path / "out/runs.csv")
    assert list(facts["category"]) == ["flange", "gear", "gear"]
    text = (tmp_path / "out/comparison.md").read_text()
    assert text.index("### both") < text.index("### gears")
    assert all((tmp_path / f"out/heatmaps_{name}.png").stat().st_size > 10_000 for name in datasets)


def test_rows_of_one_table_share_their_data(tmp_path: Path, parts: Path) -> None:
    shutil.copytree(parts, tmp_path / "copy")
    recipe, there = CONF / "sedir.yaml", {"data.root": str(tmp_path / "copy")}
    methods = {"A": Method(recipe), "B": Method(recipe, there)}
    with pytest.raises(InputError, match="the clouds of 'B' are not those of 'A'"):
        grid(methods, tmp_path, ["unified"], [0], {"data.root": str(parts)}, "test")
    list(grid(methods, tmp_path, ["unified"], [0], there, "test"))


@pytest.mark.slow
def test_a_training_that_stopped_early_is_not_gone_on_with(tmp_path: Path, parts: Path) -> None:
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    stop["init_args"] = {"monitor": "val/p_auroc", "mode": "max", "patience": 1, "min_delta": 1.0}  # pyright: ignore
    data = {"class_path": "anomaly3d.data.anomaly_shapenet.AnomalyShapeNet", "init_args": {"root": str(parts)}}
    grid_file = tmp_path / "grid.yaml"
    every = {"trainer.max_epochs": 9, "trainer.callbacks": [stop], "trainer.check_val_every_n_epoch": 1}
    content = {"methods": {"SeDiR": {"config": str(CONF / "sedir.yaml"), "overrides": {"trainer.callbacks": [stop]}}}}
    content |= {"settings": ["unified"], "overrides": every, "datasets": {"parts": {"data": data}}}
    grid_file.write_text(json.dumps(content))
    command = ["compare", "--config", str(grid_file), "--output", str(tmp_path / "out")]
    main(command)
    folder = tmp_path / "out/runs/parts/SeDiR/unified/all/seed0"
    record = json.loads((folder / "record.json").read_text())
    assert json.loads((folder / "progress.json").read_text())["epoch"] < 9
    table = (tmp_path / "out/comparison.csv").read_bytes()
    # Killed while it tested, and killed after the last checkpoint, before the training said that it had ended.
    for lost in (["record.json"], ["record.json", "trained"]):
        for name in lost:
            (folder / name).unlink()
        main(command)
        assert json.loads((folder / "record.json").read_text())["results"] == record["results"]
        assert (tmp_path / "out/comparison.csv").read_bytes() == table


TABLES = [f"comparison{kind}.{suffix}" for kind in ("", "_by_category") for suffix in ("csv", "md", "tex")]


@pytest.mark.slow
def test_a_comparison_killed_again_and_again_ends_with_the_same_tables(tmp_path: Path, parts: Path) -> None:
    def command(output: Path) -> list[str]:
        # Mamba3dAD draws noise at every step and is validated now and then.
        return [
            *(sys.executable, "-m", "anomaly3d", "compare", f"--output={output}", "--settings=[unified]"),
            f'--methods={{"Mamba3dAD": {{"config": "{CONF / "mamba3dad.yaml"}"}}}}',
            f'--overrides={{"data.root": "{parts}", "trainer.max_epochs": 30, "trainer.check_val_every_n_epoch": 4}}',
        ]

    output = tmp_path / "killed"
    folder = output / "runs/Mamba3dAD/unified/all/seed0"

    def epoch() -> int:
        file = folder / "progress.json"
        return json.loads(file.read_text())["epoch"] if file.exists() else 0

    reached = [0]
    for kills in range(3):
        process = subprocess.Popen(command(output), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while epoch() <= reached[-1] and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.15 * kills)
        process.send_signal(signal.SIGKILL)  # its run notices by itself
        process.wait()
        reached.append(epoch())
    assert 1 <= reached[-1] < 30, "killed too late or too early to show anything"
    subprocess.run(command(output), check=True, stdout=subprocess.DEVNULL)
    record = json.loads((folder / "record.json").read_text())
    logged = pd.read_csv(folder / record["log"] / "metrics.csv")
    last = logged.loc[logged["test/o_auroc"].isna(), "epoch"].to_numpy()  # the test's row has the number of epochs
    assert reached[-1] <= last.min() <= reached[-1] + 8  # went on: every tenth step is logged, and every validation
    assert last.max() == 29

    subprocess.run(command(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL)
    for name in [*TABLES, "heatmaps.png"]:
        assert (tmp_path / "whole" / name).read_bytes() == (output / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_does_not_outlive_a_killed_comparison(tmp_path: Path, parts: Path) -> None:
    command = [
        *(sys.executable, "-m", "anomaly3d", "compare", f"--output={tmp_path}", "--settings=[unified]"),
        f'--methods={{"SeDiR": {{"config": "{CONF / "sedir.yaml"}"}}}}',
        f'--overrides={{"data.root": "{parts}", "trainer.max_epochs": 10000, "trainer.limit_val_batches": 0}}',
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    progress = tmp_path / "runs/SeDiR/unified/all/seed0/progress.json"
    deadline = time.monotonic() + 240
    while not progress.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert progress.exists()
    with pytest.raises(BlockingIOError), (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_one(tmp_path):  # the run held the lock too
        pass


def test_a_second_comparison_in_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly3d.compare.lock._PATIENCE", 0.1)
    refused = pytest.raises(InputError, match=r"new: another comparison works here; give another --output")
    with only_one(tmp_path / "new"), refused, only_one(tmp_path / "new"):
        pass
    with only_one(tmp_path / "new"):
        pass


@pytest.mark.slow
def test_a_failing_run_is_named_with_the_end_of_its_log(tmp_path: Path, parts: Path) -> None:
    methods = {"SeDiR": Method(CONF / "sedir.yaml", {"model.detector.init_args.group_size": 4000})}
    with pytest.raises(InputError, match=r"SeDiR, unified, seed 0' failed(.|\n)*points"):
        compare(methods, tmp_path, settings=["unified"], overrides={"data.root": str(parts)})
    assert not (tmp_path / "comparison.csv").exists()
    methods["BTF"] = Method(CONF / "btf.yaml")
    with pytest.raises(InputError, match=r"1 run failed, the tables are of the other rows(.|\n)*SeDiR, unified"):
        compare(methods, tmp_path, settings=["unified"], overrides={"data.root": str(parts)})
    assert pd.read_csv(tmp_path / "comparison.csv")["method"].tolist() == ["BTF"]
    assert "Not in the table, for runs of it failed: SeDiR, unified." in (tmp_path / "comparison.md").read_text()


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such recipe \(method 'SeDiR'\)"):
        compare({"SeDiR": Method(Path("nowhere.yaml"))}, tmp_path)
    with pytest.raises(InputError, match="none given"):
        compare({}, tmp_path)
