"""Every row of every grid in configs/benchmark/ reaches the recipes' parser with the values that it names."""

from __future__ import annotations

from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly3d.compare import cli
from anomaly3d.compare.grid import expand

ROOT = Path(__file__).parents[1]
GRIDS = [file for file in sorted((ROOT / "configs" / "benchmark").glob("*.yaml")) if file.stem != "demo_data"]
MARKED = [
    pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if file.stem.endswith("_ablations") else [])
    for file in GRIDS
]


def compared(grid: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that `anomaly3d compare --config GRID` would compare with."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(cli, "compare", wraps(cli.compare)(lambda **arguments: found.update(arguments)))
    cli.run(["--config", str(grid)])
    return found


def plain(value: Any) -> Any:
    """A value as a file says it: of a part that stands in a file of its own, and of a path, the name."""
    value = getattr(value, "__path__", value)
    return str(value) if isinstance(value, PathLike) else value


@pytest.mark.parametrize("grid", MARKED)
def test_every_row_arrives_as_written(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly3d.lit.cli import DataCLI

    monkeypatch.chdir(ROOT)
    written, found = yaml.safe_load(grid.read_text()), compared(grid, monkeypatch)
    assert list(found["methods"]) == list(written["methods"])
    for run in expand(found["methods"], ["unified"], [0], {"any": ""}, found["overrides"] or {}, Path("unused")):
        config = DataCLI(run.arguments).config
        for key, value in (written["overrides"] | written["methods"][run.method].get("overrides", {})).items():
            # By its whole name: argparse takes the beginning of one, too.
            arrived = config[key.replace("data.", "data.init_args.", 1) if key.startswith("data.") else key]
            assert plain(arrived) == value, f"{run.method}: {key}"


def test_demo_data_is_what_the_generator_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    import anomaly3d.data.synthetic.generate as module
    from anomaly3d.__main__ import main

    found: dict[str, Any] = {}
    monkeypatch.setattr(module, "generate", wraps(module.generate)(lambda **arguments: found.update(arguments)))
    file = ROOT / "configs" / "benchmark" / "demo_data.yaml"
    main(["generate", "--config", str(file)])
    for key, value in yaml.safe_load(file.read_text()).items():
        assert plain(found[key]) == value
