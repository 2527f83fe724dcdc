"""The one error a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf


class InputError(ValueError):
    """Bad input from outside: a file, a folder, a checkpoint or a setting.

    The message is complete by itself: it names the file (or the setting) and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """


class NotReady(InputError):
    """What is missing is no cloud's fault: a package, or a training."""


@contextmanager
def about(name: str) -> Iterator[None]:
    """An InputError from inside says that it is about `name`, a sample id or a file, unless it does already."""
    try:
        yield
    except NotReady:
        raise
    except InputError as error:
        if str(error).startswith(f"{name}: "):
            raise
        raise InputError(f"{name}: {error}") from error


def reason(error: Exception) -> str:
    """The first line of an error's message, or its type's name where it has none, for a message of our own."""
    return (str(error) or type(error).__name__).splitlines()[0]


def message(error: InputError) -> str:
    """What users are to read; a data loader's worker wraps it in its traceback, whose last line it then is."""
    text, name = str(error), type(error).__name__
    return text.rpartition(f"{name}: ")[2].strip() if text.startswith(f"Caught {name} in ") else text


def parser_reason(error: Exception) -> str:
    """What a parser of jsonargparse found wrong, on one line, without the list of types that it tried."""
    kept = []
    for line in str(error).splitlines():
        text = line.strip().removeprefix("- ")
        if text and not text.startswith(_PARSER_NOISE) and "NestedArg" not in text:
            kept.append(text.removeprefix("Parser key ").replace("<class '", "").replace("'>", "").rstrip(":"))
    return ": ".join(kept)


_PARSER_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value type:", "Expected a <class 'NoneType'>")


def check_heads(width: int, heads: int) -> None:
    """Raise InputError where attention can't share its channels out among the heads."""
    if heads < 1 or width % heads:
        raise InputError(f"heads={heads}: the width, {width}, must be a multiple of the number of heads")


def check_choice(choices: Sequence[str], **settings: str) -> None:
    """Raise InputError for the first setting that is none of the choices."""
    for name, value in settings.items():
        if value not in choices:
            raise InputError(f"{name}={value!r}: choose from {', '.join(choices)}")


def check_range(low: float, high: float, **settings: float | None) -> None:
    """Raise InputError for the first setting that is given and not within [low, high]; NaN never is."""
    for name, value in settings.items():
        if value is not None and not low <= value <= high:
            raise InputError(f"{name}={value}: give a value from {low:g} to {high:g}")


def check_ends(low: float, **settings: tuple[float, float]) -> None:
    """Raise InputError for the first pair that is not a least value, of `low` or more, and a greatest, finite one."""
    for name, (least, greatest) in settings.items():
        if not low <= least <= greatest < inf or greatest < 1e-6:
            raise InputError(
                f"{name}={[least, greatest]}: give the least, {low:g} or more, and the greatest, above 0 and finite"
            )
