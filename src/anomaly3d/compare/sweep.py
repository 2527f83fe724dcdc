"""A W&B sweep file without a server: the same search as a grid of runs, judged on validation clouds."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from anomaly3d.compare.compare import compare
from anomaly3d.compare.grid import Method
from anomaly3d.errors import InputError, reason
from anomaly3d.metrics.result import METRICS


def search(
    sweep: Path,
    output: Path,
    seeds: list[int] | None = None,
    overrides: dict[str, Any] | None = None,
    jobs: int | None = None,
) -> None:
    """Run every combination of a sweep file and rank them by its metric on validation clouds.

    These are made from training clouds: the test folder is not read. Started again after a kill it goes on.

    Args:
        sweep: file as for `wandb sweep`, e.g. `configs/sweep/sedir.yaml`; of method `grid`.
        output: folder of the results: `comparison.md`, `.csv`, `.tex`, the best first, and `runs/`.
        seeds: one run per combination and seed; default [0].
        overrides: values for every run by dotted key, e.g. `{data.root: DIR, trainer.max_epochs: 10}`; they replace
            those of the file's command, but not what is searched.
        jobs: runs at a time, among which GPUs and cores are shared; default: one per GPU, or one without any.

    Raises:
        InputError: the file is no such sweep, the data can't be read, or a run failed.
    """
    methods, metric = read_sweep(sweep, overrides)
    # A comparison takes them for all rows.
    categories = [method.overrides.pop("data.categories", None) for method in methods.values()]
    if categories != categories[:1] * len(categories):
        raise InputError(f"{sweep}: data.categories can't be searched; a ranking needs one set of clouds")
    everywhere = {} if categories[0] is None else {"data.categories": categories[0]}
    compare(methods, output, ["unified"], seeds, everywhere, jobs, split="validation", rank=metric)


def read_sweep(file: Path, overrides: Mapping[str, Any] | None = None) -> tuple[dict[str, Method], str]:
    """The combinations of a sweep file, each as a row of a comparison, and the metric that ranks them.

    `overrides` replace values of the file's command.

    Raises InputError for what an agent would not run, or what this search cannot do.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such sweep")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        command, parameters, name = content["command"], dict(content["parameters"]), str(content["metric"]["name"])
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not YAML ({reason(error)})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: a sweep needs `command`, `parameters` and `metric`") from error
    if content["metric"].get("goal", "maximize") != "maximize":
        raise InputError(f"{file}: goal '{content['metric']['goal']}'; of every metric the largest value is the best")
    if content.get("method") != "grid":
        raise InputError(f"{file}: method '{content.get('method')}'; without a server only `grid` can be searched")
    split, _, metric = name.partition("/")
    if split != "val" or metric not in METRICS:
        known = ", ".join(f"val/{known}" for known in METRICS)
        raise InputError(f"{file}: metric '{name}'; choose from {known} (nothing is chosen on test clouds)")
    fixed: dict[str, Any] = {}
    words = [str(word) for word in command]
    for key, value in (_flag(file, word) for word in words if word.startswith("--") and not _logs(word)):
        if key in fixed:
            raise InputError(f"{file}: the command names --{key} twice; without a server each can stand once")
        fixed[key] = value
    config = fixed.pop("config", None)
    if config is None:
        raise InputError(f"{file}: the command names no --config=RECIPE")
    fixed |= overrides or {}
    if not parameters:
        raise InputError(f"{file}: no parameters to search")
    values = [_values(file, key, parameter) for key, parameter in parameters.items()]
    combinations = [dict(zip(parameters, combination, strict=True)) for combination in product(*values)]
    methods = {
        _row(chosen, number): Method(Path(config), {**fixed, **chosen}) for number, chosen in enumerate(combinations)
    }
    return methods, metric


def _row(chosen: Mapping[str, Any], number: int) -> str:
    """Name of a combination, and of its runs' folder: its own, without slashes, no longer than folders may be."""
    name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())
    whole = name.replace("/", ":")
    return whole if whole == name and len(name.encode()) <= _LONGEST else f"{number}: {whole[: _LONGEST // 4]}"


_LONGEST = 200  # bytes; a character takes up to four


def _flag(file: Path, part: str) -> tuple[str, str]:
    key, equals, value = part.removeprefix("--").partition("=")
    if not equals:
        raise InputError(f"{file}: write `{part}` of the command with its value as one word, {part}=VALUE")
    return key, value


def _logs(part: str) -> bool:
    """Loggers are a run's own affair here."""
    return part.startswith("--trainer.logger")


def _values(file: Path, key: str, parameter: Any) -> list[Any]:
    if isinstance(parameter, dict):
        if isinstance(parameter.get("values"), list):
            return parameter["values"]
        if "value" in parameter:
            return [parameter["value"]]
    raise InputError(f"{file}: parameter '{key}' has no `values`, which a grid needs")
