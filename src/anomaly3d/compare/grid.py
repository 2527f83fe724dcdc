"""A grid of runs: data sets x methods x settings x seeds, and per category one run each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from inspect import getsourcefile
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
        chosen = values.pop("data.categories", None)
        if self.categories:  # none yet where the categories are asked for
            chosen = list(self.categories)
        if chosen is not None:
            values["data.categories"] = chosen  # last: a file of data settings would set them again
        return [f"--config={self.config}", *(f"--{key}={_text(value)}" for key, value in values.items())]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the run's result; a record with another one is not this run's."""
        files = {path: _digest(path) for path in SHIPPED.values()}
        _read_named({"": str(self.config), **self.overrides}, [Path()], files)
        content = json.dumps([self.arguments, self.split, self.data_sha256, *files.values()])
        return hashlib.sha256(content.encode()).hexdigest()


def merged(overrides: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """Values of a run by dotted key, in the order in which they apply: those of all rows, then the row's own."""
    return {**{key: value for key, value in overrides.items() if key not in method.overrides}, **method.overrides}


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
                        overrides=merged(overrides, method),
                        folder=output / "runs" / dataset / name / setting / leaf / f"seed{seed}",
                        split=split,
                        dataset=dataset,
                        data_sha256=hashlib.sha256("".join(data[name] for name in group).encode()).hexdigest(),
                    )


def _digest(path: Path) -> str:
    """SHA-256 of a file; read once as long as it stays as it is, since a grid's runs share large weights."""
    state = path.stat()
    return _digest_of(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_of(path: Path, size: int, changed_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_named(value: Any, folders: Sequence[Path], found: dict[Path, str]) -> None:
    """Digest of every file that a value names, and that a recipe among them names: its parts, weights, own classes."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _read_named(part, folders, found)
    if not isinstance(value, str):
        return
    if value.startswith(("{", "[")):
        with suppress(yaml.YAMLError):
            if not isinstance(inner := yaml.safe_load(value), str):
                _read_named(inner, folders, found)
    if (source := _source(value)) is not None:
        found[source] = _digest(source)
    for folder in folders:
        path = folder / os.path.expanduser(value)
        if os.path.isfile(path) and path not in found:  # false for any text, where Path.is_file may raise
            found[path] = _digest(path)
            if path.suffix in (".yaml", ".yml"):
                # What it names is unknown where it can't be read; whoever takes it as a recipe says so.
                with suppress(yaml.YAMLError, UnicodeDecodeError):
                    _read_named(yaml.safe_load(path.read_text("utf-8")), [Path(), path.parent], found)


@lru_cache(maxsize=1024)
def _source(class_path: str) -> Path | None:
    """The file of a class that is not the package's own, whose code a commit would not show; None where there is none.

    Modules that it imports are not looked at.
    """
    module, dot, name = class_path.rpartition(".")
    if not dot or not all(part.isidentifier() for part in class_path.split(".")):
        return None
    if module.partition(".")[0] in ("anomaly3d", "lightning", "torch"):
        return None
    with suppress(Exception):  # no such class, or one whose module fails; the run will say so
        if (file := getsourcefile(getattr(import_module(module), name))) is not None:
            return Path(file)
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
