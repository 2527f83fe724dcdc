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

    Blank lines and comments (`#`) are skipped, and so are header lines before the first row of numbers, the bare column
    numbers 0, 1, 2, ... of a table without names among them. If a header has as many names as there are columns, those
    of `first` among them (in any case, with a unit behind them or without, or all with one word before them, as
    `pos_x`), these columns come first; else columns stand as in the file, with a warning if the header says that others
    were meant. An index, a first column without a name that counts the rows, is left out.
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
    if _counts_columns(lines[skip : skip + 2], delimiter):
        warnings.warn(f"{path}: its first row, {lines[skip].strip()}, is taken for a header.", stacklevel=2)
        skip += 1
    try:
        # Not by path: a letter of a unit (µ) in another encoding than UTF-8 is no reason to refuse the numbers.
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            table = np.loadtxt(file, delimiter=delimiter or None, skiprows=skip, ndmin=2, dtype=np.float64)
    except ValueError as error:
        name = {"": "spaces", "\t": "tabs"}.get(delimiter or "", repr(delimiter))
        raise InputError(
            f"{path}: not a table of numbers separated by {name} as its line {skip + 1} is ({error}). Mend or export "
            f"the file again."
        ) from error
    headers = [_names(line) for line in lines[:skip] if line.strip()]
    unnamed = table.shape[1] > 1 and any(names[0] == "" and len(names) == table.shape[1] for names in headers)
    if unnamed and (table[:, 0] == np.arange(len(table))).all():
        table, headers = table[:, 1:], [names[1:] for names in headers]
    if not first:
        return table
    columns = [(names, _columns(names, first)) for names in headers]
    wanted = next((found for names, found in columns if found and len(names) == table.shape[1]), None)
    if wanted is None:
        _warn_of_names(path, columns, table.shape[1])
        return table
    return table[:, [*wanted, *(column for column in range(table.shape[1]) if column not in wanted)]]


def _columns(names: Sequence[str], first: Sequence[str]) -> list[int] | None:
    """Where the wanted names stand: as they are, else all with one word before them (`pos_x`, `position x`)."""
    if set(first) <= set(names):
        return [names.index(name) for name in first]
    before = dict.fromkeys(name[: -len(first[0])] for name in names if re.search(rf"[\W_]{re.escape(first[0])}$", name))
    meant = [word for word in before if all(word + name in names for name in first)]
    return [names.index(meant[0] + name) for name in first] if len(meant) == 1 else None


def _warn_of_names(path: Path, columns: Sequence[tuple[list[str], list[int] | None]], count: int) -> None:
    """Tell users of a header that has other names, or other columns, than were taken."""
    for names, found in columns:
        if found:
            text = f"a header of {len(names)} names for {count} columns; the first are taken."
        elif len(names) == count > 3 and not any(_is_number(name) for name in names):
            text = f"no columns x, y, z among {', '.join(names[:6])}; the first three are taken."
        else:
            continue
        warnings.warn(f"{path}: {text}", stacklevel=3)
        return


def _counts_columns(lines: Sequence[str], delimiter: str | None) -> bool:
    """Whether the first of two lines is 0, 1, 2, ..., as pandas heads a table without names, and not a point."""
    first, *rest = (line.strip().split(delimiter or None) for line in lines)
    counted = [str(number) for number in range(len(first))]
    return first == counted and len(first) > 2 and rest != [] and any("." in text for text in rest[0])


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
