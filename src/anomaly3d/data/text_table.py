"""Reader for tables of numbers in text files: clouds (.txt, .xyz, .csv) and ground truth."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from anomaly3d.errors import InputError

_PROLOGUE = 50
"""Lines in which the first row of numbers must come [ours]."""


def refuse_empty(path: Path) -> None:
    """Raise InputError if the file is missing, empty, or a Git LFS pointer in place of its content."""
    if not path.is_file():
        raise InputError(f"{path}: no such file.")
    with path.open("rb") as file:
        start = file.read(40)
    if not start:
        raise InputError(
            f"{path}: empty file (0 bytes). Export or copy it again; from an archive: 7-zip turns some RAR archives, "
            f"among them Anomaly-ShapeNet's, into empty files, unrar and WinRAR do not."
        )
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: a Git LFS pointer, not the data. Run `git lfs pull` in its repository.")


def read_table(path: Path, first: Sequence[str] = ()) -> Float64[np.ndarray, "R C"]:
    """Rows of numbers, the delimiter (comma, semicolon, tab, spaces) found by looking, never guessed from the path.

    Blank lines and comments (`#`) are skipped, and so are header lines before the first row of numbers. If one of them
    has as many names as there are columns, those of `first` among them (in any case, with a unit behind them or
    without), these columns come first; else columns stand as in the file, with a warning if `first` is among the names.
    Raises InputError for an empty file, a file without numbers, or rows of different lengths.
    """
    refuse_empty(path)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = list(islice(file, _PROLOGUE))
    delimiters = [_delimiter(line) for line in lines]
    skip = next((number for number, delimiter in enumerate(delimiters) if delimiter is not None), None)
    if skip is None:
        raise InputError(
            f"{path}: no row of numbers in its first {len(lines)} lines: {''.join(lines[:1])[:60]!r}. "
            "Write numbers with a decimal point, and a comma, semicolon, tab or space between them."
        )
    delimiter = delimiters[skip]
    try:
        table = np.loadtxt(
            path, delimiter=delimiter or None, skiprows=skip, ndmin=2, dtype=np.float64, encoding="utf-8-sig"
        )
    except ValueError as error:
        name = {"": "spaces", "\t": "tabs"}.get(delimiter or "", repr(delimiter))
        raise InputError(
            f"{path}: not a table of numbers separated by {name} as its line {skip + 1} is ({error}). Mend or export "
            f"the file again."
        ) from error
    named = [names for line in lines[:skip] if first and set(first) <= set(names := _names(line))]
    names = next((names for names in named if len(names) == table.shape[1]), None)
    if names is None:
        if named:
            warnings.warn(
                f"{path}: a header of {len(named[0])} names for {table.shape[1]} columns; the first are taken.",
                stacklevel=2,
            )
        return table
    wanted = [names.index(name) for name in first]
    return table[:, [*wanted, *(column for column in range(len(names)) if column not in wanted)]]


def _names(line: str) -> list[str]:
    """Names of a header line, in small letters, without quotes, units, and the signs that mark it as a comment."""
    line = line.strip("\n\r").lstrip("#/% ")
    parts = next((line.split(delimiter) for delimiter in ";,\t" if delimiter in line), line.split())
    return [re.sub(r"\s*[\[(].*", "", part.strip(" \"'")).lower() for part in parts]


def _delimiter(line: str) -> str | None:
    """Delimiter of a row of numbers ("" for white space); None for a line that is no such row."""
    line = line.split("#")[0].strip()
    for delimiter in (";", ",", "\t", ""):
        if delimiter and delimiter not in line:
            continue
        parts = re.split(re.escape(delimiter) if delimiter else r"\s+", line)
        return delimiter if all(_is_number(part) for part in parts) else None
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
