"""A grid of runs: data sets x methods x settings x seeds, and per category one run each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from anomaly3d.models.backbones.weights import SHIPPED

Setting = Literal["unified", "per-category"]
Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        config: recipe, as for `anomaly3d fit --config`.
        overrides: values that differ from the recipe, by dotted key, e.g. `{model.lr: 0.001}`.
        published: what the paper reports for this row, in percent by metric, e.g. `{o_auroc: 81.0}`; in columns of
            their own.
        seeds: instead of the grid's; a method in which nothing is random, as a bank on trained
            weights, needs one.
    """

    config: Path
    # Not Any alone, for which the parser reads a text as YAML again: an "off" would arrive as false.
    overrides: dict[str, str | Any] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    seeds: list[int] | None = None


@dataclass(frozen=True)
class Run:
    """One training of the grid, and its evaluation on `split`."""

    method: str
    setting: Setting
    seed: int
    categories: tuple[str, ...]
    config: Path
    overrides: dict[str, Any]
    folder: Path
    split: Split = "test"
    dataset: str = ""  # its name in the grid, where the grid has several
    data_sha256: str = ""  # of the clouds that it learns from and is scored on (`data_digest`)

    @property
    def name(self) -> str:
        """What the progress bar shows."""
        which = self.setting if self.setting == "unified" else self.categories[0]
        return ", ".join(filter(None, (self.dataset, self.method, which, f"seed {self.seed}")))

    @property
    def arguments(self) -> list[str]:
        """Command-line arguments of the run, in the form of `anomaly3d fit`."""
        values = {**self.overrides, "seed_everything": self.seed}
        if self.categories:  # none yet where the categories are asked for
            values["data.categories"] = list(self.categories)
        return [f"--config={self.config}", *(f"--{key}={_text(value)}" for key, value in values.items())]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the run's result; a record with another one is not this run's."""
        content = json.dumps([self.arguments, self.split, self.data_sha256])
        files: dict[Path, bytes] = {path: path.read_bytes() for path in SHIPPED.values()}
        _read_named({"": str(self.config), **self.overrides}, [Path()], files)
        return hashlib.sha256(b"".join([content.encode(), *files.values()])).hexdigest()


def expand(
    methods: Mapping[str, Method],
    settings: Sequence[Setting],
    seeds: Sequence[int],
    data: Mapping[str, str],
    overrides: Mapping[str, Any],
    output: Path,
    split: Split = "test",
    dataset: str = "",
) -> Iterator[Run]:
    """All runs of a grid on one data set, in the order of the table; `data` is the hash of each category's data."""
    for name, method in methods.items():
        for setting in settings:
            groups = [tuple(data)] if setting == "unified" else [(category,) for category in data]
            for group in groups:
                for seed in method.seeds or seeds:
                    leaf = "all" if setting == "unified" else group[0]
                    yield Run(
                        method=name,
                        setting=setting,
                        seed=seed,
                        categories=group,
                        config=method.config,
                        overrides={**overrides, **method.overrides},
                        folder=output / "runs" / dataset / name / setting / leaf / f"seed{seed}",
                        split=split,
                        dataset=dataset,
                        data_sha256=hashlib.sha256("".join(data[name] for name in group).encode()).hexdigest(),
                    )


def _read_named(value: Any, folders: Sequence[Path], found: dict[Path, bytes]) -> None:
    """Content of every file that a value names, and that a recipe among them names: its parts, and weights."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _read_named(part, folders, found)
    if not isinstance(value, str):
        return
    for folder in folders:
        path = folder / os.path.expanduser(value)
        if os.path.isfile(path) and path not in found:  # false for any text, where Path.is_file may raise
            found[path] = path.read_bytes()
            if path.suffix in (".yaml", ".yml"):
                with suppress(yaml.YAMLError):  # what it names is unknown then; whoever takes it as a recipe says so
                    _read_named(yaml.safe_load(found[path]), [Path(), path.parent], found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
