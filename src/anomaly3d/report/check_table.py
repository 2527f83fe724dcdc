"""`anomaly3d check-table`: what is wrong in tables of results by arithmetic alone."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from anomaly3d.data.released_splits import released_counts
from anomaly3d.errors import InputError
from anomaly3d.files import write_text
from anomaly3d.report.results_csv import read_results
from anomaly3d.report.table_checks import attainable_table, means_table, precision_table


def run(args: list[str]) -> None:
    """The verb: `anomaly3d check-table FILE... [--output FILE.md]`. What it finds is no error."""
    # Not jsonargparse: it takes several files only as one list in brackets.
    parser = ArgumentParser(
        prog="anomaly3d check-table",
        description="Check the arithmetic of tables of results: printed means, attainable O-AUROCs, and O-AUPRs that "
        "are too large for the O-AUROC beside them.",
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="CSV, checked together: published tables as in benchmarks/reported/, those that `anomaly3d compare` "
        "writes, or a test's metrics.csv; of a folder all that lie in it",
    )
    parser.add_argument("--output", metavar="FILE.md", type=Path, help="write the report as Markdown")
    options = parser.parse_args(args)
    files = []
    for path in options.files:
        found = sorted(path.glob("[!.]*.csv")) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: no .csv in this folder")
        files += found
    check_table(files, options.output)


def check_table(files: Sequence[Path], output: Path | None = None) -> None:
    """Check tables of results together; print what was found and write it to `output` (Markdown).

    Raises InputError if a file is missing, isn't a table of results, or has nothing that a check could compare.
    """
    from anomaly3d.report.tables import table_console

    scores = read_results(files)
    if not any(entry.cells or released_counts(entry.dataset) for entry in scores):
        raise InputError(
            f"{', '.join(map(str, files))}: nothing to check, only means; give the numbers by category, too "
            "(`anomaly3d compare` writes them to comparison_by_category.csv)"
        )
    tables = [means_table(scores), attainable_table(scores), precision_table(scores)]
    console = table_console()
    for table in tables:
        console.print(table.console())
    if output is not None:
        command = f"`anomaly3d check-table {' '.join(map(str, files))}`"
        parts = ["# Checks of tables of results", command, *(table.markdown().rstrip() for table in tables)]
        try:
            write_text(output, "\n\n".join(parts) + "\n")
        except OSError as error:
            raise InputError(f"{output}: can't be written ({error.strerror}); give a file as --output") from error
        console.print(f"written: {output}")
