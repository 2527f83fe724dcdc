"""The command line of `anomaly3d compare`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from anomaly3d.compare.compare import compare
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
    parser = ArgumentParser(prog="anomaly3d compare", description=description)
    parser.add_argument("--config", action="config", help="file with these arguments")
    parser.add_function_arguments(function, as_group=False)
    values: dict[str, Any] = dict(vars(parser.instantiate_classes(parser.parse_args(list(others)))))
    del values["config"]
    values["overrides"] = {**(values["overrides"] or {}), **overrides}
    function(**values)


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
