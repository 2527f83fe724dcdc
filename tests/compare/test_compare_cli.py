from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomaly3d.__main__ import main
from anomaly3d.compare import cli
from anomaly3d.compare.grid import Method, merged
from anomaly3d.errors import InputError


def test_overrides_on_the_command_line_add_up_and_replace_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "output: out\nmethods:\n  A: {config: recipe.yaml}\nseeds: [3]\n"
        "overrides: {data.root: old, trainer.limit_val_batches: 0}\n"
    )
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli, "compare", _recorder(seen))
    given = ["--overrides.data.root", "new", "--overrides.data.class_path=a.B", "--overrides.trainer.max_epochs", "5"]
    cli.run(["--config", str(grid), *given, "--jobs", "2"])
    assert seen["overrides"] == {
        "data.root": "new",
        "trainer.limit_val_batches": 0,
        "data.class_path": "a.B",
        "trainer.max_epochs": "5",
    }
    assert seen["seeds"] == [3]
    assert seen["jobs"] == 2


def test_what_the_command_line_gives_is_not_hidden_by_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid_file = tmp_path / "grid.yaml"
    grid_file.write_text(
        "output: out\nmethods:\n"
        "  A: {config: recipe.yaml, overrides: {data: d.yaml, model: part.yaml, model.x: 1, trainer.max_epochs: 200}}\n"
        "  B: {config: recipe.yaml, overrides: {model.x: 2}}\n"
        "overrides: {trainer.max_epochs: 50, model.lr: 3}\n"
    )
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli, "compare", _recorder(seen))
    given = {"data.categories": "[gear]", "trainer.max_epochs": "7", "model.lr": "0.1"}
    given |= {"model": "whole.yaml", "modelled": "y"}
    cli.run(["--config", str(grid_file), *(f"--overrides.{key}={value}" for key, value in given.items())])

    def values(name: str) -> list[tuple[str, Any]]:
        return list(merged(seen["overrides"], seen["methods"][name]).items())

    # In the order in which they apply. The row's file goes before a value in it; the row's x is what makes it a row.
    assert values("A") == [
        *(("data.categories", "[gear]"), ("modelled", "y")),  # `Run.arguments` puts the categories last
        *(("data", "d.yaml"), ("model", "whole.yaml"), ("model.x", 1)),
        *(("trainer.max_epochs", "7"), ("model.lr", "0.1")),
    ]
    assert values("B") == [
        *(("trainer.max_epochs", "7"), ("model.lr", "0.1"), ("data.categories", "[gear]")),
        *(("model", "whole.yaml"), ("modelled", "y"), ("model.x", 2)),
    ]


MAPPING = '{"data.root": "new", "model.x": 5, "model.lr": 0.1}'


@pytest.mark.parametrize("given", [["--overrides", MAPPING], [f"--overrides={MAPPING}"]])
def test_a_mapping_on_the_command_line_adds_to_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    grid_file = tmp_path / "grid.yaml"
    grid_file.write_text(
        "output: out\nmethods:\n  A: {config: recipe.yaml, overrides: {model.x: 1}}\n"
        "overrides: {data.root: old, model.protocol: paper}\n"
    )
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli, "compare", _recorder(seen))
    cli.run(["--config", str(grid_file), *given, "--overrides.model.lr", "2"])
    assert merged(seen["overrides"], seen["methods"]["A"]) == {
        "data.root": "new",
        "model.protocol": "paper",
        "model.x": 1,
        "model.lr": "2",
    }


@pytest.mark.parametrize(("text", "why"), [("data.root", "give a mapping"), ("{a: [}", "no YAML")])
def test_overrides_that_are_no_mapping_are_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"^--overrides .*{why}"):
        cli.split_overrides(["--overrides", text])


def test_an_override_without_a_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--overrides.data.root"], ["--overrides.data.root", "--jobs", "2"]):
        with pytest.raises(InputError, match=r"--overrides\.data\.root: give it a value"):
            cli.split_overrides(args)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--overrides.data.root"])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_names_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    assert "--methods" in (out := capsys.readouterr().out)
    assert "--config" in out


def _recorder(seen: dict[str, Any]) -> Any:
    def compare(
        methods: dict[str, Method],
        output: Path,
        settings: list[str] | None = None,
        seeds: list[int] | None = None,
        overrides: dict[str, Any] | None = None,
        jobs: int = 1,
    ) -> None:
        seen.update(methods=methods, seeds=seeds, overrides=overrides, jobs=jobs)

    return compare
