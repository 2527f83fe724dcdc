"""Sweep files: as a W&B agent runs them, and the same search without a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from anomaly3d.__main__ import main
from anomaly3d.compare import sweep
from anomaly3d.compare.sweep import read_sweep
from anomaly3d.errors import InputError

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))
FEW = (
    *("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"),
    *("--data.val_points=1000", "--data.val_normal=1", "--data.val_defective=1"),
)


def combinations(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """What a server's grid search sends to its agents."""
    keys = list(sweep["parameters"])
    return [dict(zip(keys, v, strict=True)) for v in product(*(sweep["parameters"][k]["values"] for k in keys))]


def agents_command(sweep: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """The command line of a W&B agent, made by W&B's own functions."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    command = utils.create_sweep_command(list(sweep["command"]))
    words = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    words["env"] = ["/usr/bin/env"]
    return [w for part in command for w in (words[part[2:-1]] if part.startswith("${") else [part])]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_looks_at_validation_only_and_an_agent_s_values_arrive(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomaly3d.lit.cli import DataCLI

    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(file.read_text())
    assert sweep["metric"]["name"].startswith("val/")
    assert {"program", "method", "metric", "parameters", "command"} <= sweep.keys()
    for chosen in combinations(sweep):
        command = agents_command(sweep, chosen)
        assert command[:3] == ["/usr/bin/env", "anomaly3d", "fit"]
        config = DataCLI(command[3:]).config
        assert {key: config[key] for key in chosen} == chosen
        loggers = [logger.class_path.rpartition(".")[2] for logger in config["trainer.logger"]]
        assert loggers == ["CSVLogger", "WandbLogger"]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_the_search_without_a_server_has_the_agents_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly3d.compare.grid import expand
    from anomaly3d.lit.cli import DataCLI

    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load(file.read_text())
    methods, metric = read_sweep(file)
    assert f"val/{metric}" == sweep["metric"]["name"]
    assert len(methods) == len(combinations(sweep))
    runs = expand(methods, ["unified"], [0], {"gear": ""}, {}, Path("out"), "validation")
    for run, chosen in zip(runs, combinations(sweep), strict=True):
        ours = DataCLI(run.arguments).config.as_dict()
        theirs = DataCLI([*agents_command(sweep, chosen)[3:], '--data.categories=["gear"]']).config.as_dict()
        del ours["trainer"]["logger"], theirs["trainer"]["logger"], ours["config"], theirs["config"]
        assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_s_command_trains_and_logs_the_metric(file: Path, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    sweep = yaml.safe_load(file.read_text())
    command = agents_command(sweep, combinations(sweep)[-1])
    done = subprocess.run(
        [*command, *FEW, f"--data.root={parts}"],
        cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "offline", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert sweep["metric"]["name"].encode() in run.read_bytes()
    (metrics,) = tmp_path.glob("runs/*/version_0/metrics.csv")
    assert pd.read_csv(metrics)[sweep["metric"]["name"]].notna().to_numpy().sum() == 1
    (config,) = tmp_path.glob("runs/*/version_0/config.yaml")
    assert yaml.safe_load(config.read_text())["model"]["lr"] == sweep["parameters"]["model.lr"]["values"][-1]


def test_overrides_replace_what_the_command_sets_but_not_what_is_searched(tmp_path: Path) -> None:
    command = ["anomaly3d", "fit", "--config=recipe.yaml", "--data.root=theirs", "--trainer.max_epochs=100", "${args}"]
    file = sweep_file(tmp_path, command=command)
    methods, _ = read_sweep(file, {"data.root": "mine", "model.lr": 0.5})
    assert [method.overrides for method in methods.values()] == [
        {"data.root": "mine", "trainer.max_epochs": "100", "model.lr": lr} for lr in (1.0e-5, 1.0e-3)
    ]


def test_the_categories_of_a_search_are_those_of_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sweep, "compare", lambda methods, *others, **_: seen.extend([methods, others[3]]))
    sweep.search(sweep_file(tmp_path), tmp_path, overrides={"data.categories": "[gear]"})
    assert seen[1] == {"data.categories": "[gear]"}
    assert not any("data.categories" in method.overrides for method in seen[0].values())
    searched = sweep_file(tmp_path, parameters={"data.categories": {"values": [["gear"], ["flange"]]}})
    with pytest.raises(InputError, match="can't be searched"):
        sweep.search(searched, tmp_path)


def sweep_file(folder: Path, **changes: Any) -> Path:
    content = {
        "method": "grid",
        "metric": {"name": "val/p_auroc", "goal": "maximize"},
        "parameters": {"model.lr": {"values": [1.0e-5, 1.0e-3]}},
        "command": ["${env}", "anomaly3d", "fit", f"--config={ROOT / 'tests/conf/sedir.yaml'}", "${args}"],
        **changes,
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.slow
def test_the_search_ranks_on_validation_without_a_test_folder(parts: Path, tmp_path: Path) -> None:
    root = tmp_path / "train_only"
    shutil.copytree(parts, root, ignore=shutil.ignore_patterns("test", "GT"))
    output = tmp_path / "out"
    arguments = ["--sweep", str(sweep_file(tmp_path)), "--output", str(output), "--overrides.data.root", str(root)]
    main(["compare", *arguments, "--overrides.trainer.max_epochs", "1"])
    table = pd.read_csv(output / "comparison.csv")
    assert sorted(table["method"]) == ["lr 0.001", "lr 1e-05"]
    assert table["p_auroc_mean"].is_monotonic_decreasing
    for name in table["method"]:
        record = json.loads((output / f"runs/{name}/unified/all/seed0/record.json").read_text())
        assert record["split"] == "validation"
        assert f"--model.lr={name.split()[1]}" in record["command"]
    assert set(pd.read_csv(output / "runs.csv")["split"]) == {"validation"}
    assert "no test cloud was read" in (output / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, "method 'bayes'; without a server only `grid`"),
        ({"metric": {"name": "test/o_auroc"}}, "metric 'test/o_auroc'; choose from val/o_auroc"),
        ({"metric": {"name": "val/loss"}}, "metric 'val/loss'"),
        ({"parameters": {"model.lr": {"min": 0.1, "max": 1.0}}}, "'model.lr' has no `values`"),
        ({"command": ["anomaly3d", "fit", "${args}"]}, "no --config=RECIPE"),
        ({"command": ["anomaly3d", "--config", "x.yaml"]}, "--config=VALUE"),
        ({"command": ["anomaly3d", "--config=a.yaml", "--config=b.yaml"]}, "names --config twice"),
        ({"command": None}, "a sweep needs"),
        ({"parameters": {"model.lr": 3}}, "'model.lr' has no `values`"),
        ({"parameters": {"model.lr": {"values": 3}}}, "'model.lr' has no `values`"),
        ({"metric": {"name": "val/o_auroc", "goal": "minimize"}}, "goal 'minimize'"),
        ({"parameters": {}}, "no parameters"),
    ],
)
def test_sweeps_that_cannot_be_searched_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("command", "") is None:
        (tmp_path / "sweep.yaml").write_text("method: grid\n")
        file = tmp_path / "sweep.yaml"
    else:
        file = sweep_file(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        read_sweep(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_a_sweep_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("method: [grid\n")
    with pytest.raises(InputError, match=r"sweep\.yaml: not YAML"):
        read_sweep(tmp_path / "sweep.yaml")


def test_a_missing_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such sweep"):
        read_sweep(tmp_path / "nowhere.yaml")


def test_every_combination_can_name_a_folder(tmp_path: Path) -> None:
    weights = ["small", "runs/a.safetensors", "runs:a.safetensors", "w" * 300, "w" * 301]
    command = [3, "--config=recipe.yaml"]  # YAML reads a bare 3 as a number
    file = sweep_file(tmp_path, command=command, parameters={"model.backbone_weights": {"values": weights}})
    methods, _ = read_sweep(file)
    assert [method.overrides["model.backbone_weights"] for method in methods.values()] == weights
    assert "backbone_weights small" in methods
    for name in methods:
        (tmp_path / name).mkdir()
