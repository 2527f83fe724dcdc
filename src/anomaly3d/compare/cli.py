"""The command line of `anomaly3d compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from anomaly3d.compare.compare import compare
from anomaly3d.compare.grid import Method
from anomaly3d.compare.sweep import search
from anomaly3d.errors import InputError

_WHOLE = "--overrides"


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
    values["overrides"] = {**(values["overrides"] or {}), **overrides.added, **overrides.above}
    for name, method in (values.get("methods") or {}).items():
        values["methods"][name] = replace(method, overrides=_above(method.overrides, overrides.above))
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


class Overrides(NamedTuple):
    """What the command line gives of `overrides`."""

    added: dict[str, Any]
    """To those of the grid's file, by `--overrides '{KEY: VALUE, ...}'`: below what makes a row."""
    above: dict[str, str]
    """By `--overrides.KEY VALUE`: above it."""


def split_overrides(args: Sequence[str]) -> tuple[Overrides, list[str]]:
    """What the arguments say of `overrides`, and the other arguments.

    A dotted key is the name of one value of the recipes. jsonargparse would read `data.root` as an entry of a dict
    `data`, keep the last of two such arguments only, and drop the grid's own, such as its protocol, where a mapping is
    given.
    """
    overrides, others = Overrides({}, {}), []
    rest = iter(args)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != _WHOLE and not name.startswith(f"{_WHOLE}."):
            others.append(argument)
            continue
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise InputError(f"{argument}: give it a value, as in {argument} VALUE")
            value = following
        if name == _WHOLE:
            overrides.added.update(_mapping(value))
        else:
            overrides.above[name.removeprefix(f"{_WHOLE}.")] = value
    return overrides, others


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{_WHOLE} {text}: no YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{_WHOLE} {text}: give a mapping, as in {_WHOLE} '{{data.root: DIR}}'")
    return values
