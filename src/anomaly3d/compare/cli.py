"""The command line of `anomaly3d compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from anomaly3d.compare.compare import compare
from anomaly3d.compare.grid import Method
from anomaly3d.compare.sweep import search
from anomaly3d.errors import InputError

_PREFIX = "--overrides."


def run(args: Sequence[str]) -> None:
    """Parse the arguments behind the verb, and compare; with `--sweep FILE`, search."""
    overrides, others = split_overrides(args)
    searches = any(argument.partition("=")[0] == "--sweep" for argument in others)
    function = search if searches else compare
    also = "" if searches else "With --sweep FILE instead: run a W&B sweep without a server (--sweep FILE --help)."
    description = (function.__doc__ or "").partition("Args:")[0] + also
    parser = ArgumentParser(prog="anomaly3d compare", description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="file with these arguments")
    parser.add_function_arguments(function, as_group=False)
    parsed = parser.parse_args(list(others))
    values: dict[str, Any] = dict(vars(parser.instantiate_classes(parsed)))
    del values["config"]
    # As they were written: the parser would build an object of everything that has a `class_path`.
    for name in ("overrides", "datasets"):
        if parsed.get(name) is not None:
            values[name] = _plain(parsed[name])
    written = _plain(parsed.get("methods") or {})
    for name, method in (values.get("methods") or {}).items():
        if isinstance(method, Method):
            values["methods"][name] = replace(method, overrides=written[name].get("overrides") or {})
    values["overrides"] = {**(values["overrides"] or {}), **overrides}
    for name, method in (values.get("methods") or {}).items():
        values["methods"][name] = replace(method, overrides=_above(method.overrides, overrides))
    function(**values)


def _above(row: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A row's overrides with those values of the command line that the row would hide.

    It names the same key, or a whole file of values above it. A file that is given for all rows stays below what makes
    a row.
    """
    hidden = {k: v for k, v in given.items() if any(k == own or k.startswith(f"{own}.") for own in row)}
    hidden.pop("data.categories", None)  # of all rows, and above them in any case
    return {**row, **hidden}


def _plain(value: Any) -> Any:
    """Nothing but dicts, lists and plain values."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def split_overrides(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The `--overrides.KEY VALUE` arguments by key, and the other arguments.

    A dotted key is the name of one value of the recipes. jsonargparse would read `data.root` as an entry of a dict
    `data`, and of two such arguments keep the last one only.
    """
    overrides: dict[str, str] = {}
    others: list[str] = []
    rest = iter(args)
    for argument in rest:
        if not argument.startswith(_PREFIX):
            others.append(argument)
            continue
        key, equals, value = argument.removeprefix(_PREFIX).partition("=")
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise InputError(f"{argument}: give it a value, as in {argument} VALUE")
            value = following
        overrides[key] = value
    return overrides, others
