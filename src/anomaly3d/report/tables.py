"""Tables of one evaluation: CSV to compute with, Markdown, LaTeX and console to read.

CSV holds fractions in full precision, one row per category and no mean row, so that files of several runs can be
joined; what a person reads is in percent with one decimal. CSV has every metric, the other forms the main ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly3d.errors import InputError
from anomaly3d.files import write_text
from anomaly3d.metrics.result import METRICS, POINT_METRICS, CategoryResult, EvaluationResult

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table as RichTable

_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}"},
    **{"–": "--", "±": "$\\pm$", "·": "$\\cdot$"},
}
HEADINGS = {"o_auroc": "O-AUROC", "o_aupr": "O-AUPR", "p_auroc": "P-AUROC", "p_aupr": "P-AUPR", "aupro": "AUPRO"}


def table_console() -> Console:
    """Standard output; wide enough for the digits of a table where it is no terminal but a file or a pipe."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 160))


@dataclass(frozen=True)
class Table:
    """Cells as text. The first `labels` columns are words (left-aligned), the rest numbers; `summary` rows come last.

    `footer` lines stand under the table: provenance and what the numbers leave out.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    summary: Sequence[Sequence[str]] = ()
    footer: Sequence[str] = ()
    title: str | None = None

    def markdown(self) -> str:
        """GitHub Markdown, columns padded so that the source is legible too; summary rows in bold."""
        bold = [[f"**{cell}**" if cell else "" for cell in row] for row in self.summary]
        head, *body = ([cell.replace("|", "\\|") for cell in row] for row in [self.columns, *self.rows, *bold])
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        rule = [
            f":{'-' * (width - 1)}" if i < self.labels else f"{'-' * (width - 1)}:" for i, width in enumerate(widths)
        ]
        lines = [f"| {' | '.join(self._padded(row, widths))} |" for row in [head, rule, *body]]
        heading = [f"### {self.title}", ""] if self.title else []
        footer = [line for text in self.footer for line in ("", text)]
        return "\n".join([*heading, *lines, *footer]) + "\n"

    def latex(self) -> str:
        """A `table` with booktabs' rules (`\\usepackage{booktabs}`); the footer is its caption."""
        body = [*self.rows, *(["\\midrule"] if self.summary else []), *self.summary]
        lines = [row if isinstance(row, str) else f"{' & '.join(map(_tex, row))} \\\\" for row in body]
        caption = " ".join(_tex(text) for text in [*([f"{self.title}."] if self.title else []), *self.footer])
        return "\n".join(
            [
                "\\begin{table}",
                f"\\caption{{{caption}}}",
                "\\centering",
                f"\\begin{{tabular}}{{{'l' * self.labels}{'r' * (len(self.columns) - self.labels)}}}",
                "\\toprule",
                f"{' & '.join(map(_tex, self.columns))} \\\\",
                "\\midrule",
                *lines,
                "\\bottomrule",
                "\\end{tabular}",
                "\\end{table}\n",
            ]
        )

    def console(self) -> RichTable:
        """The same cells for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table as RichTable

        caption = "\n".join(escape(line) for line in self.footer)
        title = escape(self.title) if self.title else None
        table = RichTable(
            title=title,
            caption=caption or None,
            caption_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),  # nine columns of numbers fit into 80 characters
        )
        for i, column in enumerate(self.columns):
            # On a narrow terminal cells break between words, labels anywhere: nothing is cut off.
            words = " ".join([column, *(row[i] for row in [*self.rows, *self.summary])]).split()
            label = i < self.labels
            table.add_column(
                escape(column),
                justify="left" if label else "right",
                min_width=None if label else max(map(len, words)),
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*map(escape, row))
        if self.summary:
            table.add_section()
        for row in self.summary:
            table.add_row(*map(escape, row), style="bold")
        return table

    def _padded(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if i < self.labels else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]


def percent(mean: float, std: float = math.nan) -> str:
    """A fraction in percent with one decimal, with its deviation if there is one; a dash if undefined."""
    if math.isnan(mean):
        return "–"
    return f"{100 * mean:.1f}" if math.isnan(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"


def percent_interval(interval: tuple[float, float]) -> str:
    """An interval of fractions in percent, `51.2 - 70.9` with an en dash; empty without one.

    Also empty where both ends are the same, as of a bootstrap over clouds that are all ranked right: it says nothing.
    """
    low, high = interval
    return "" if math.isnan(low) or not low < high else f"{100 * low:.1f} – {100 * high:.1f}"


def provenance_line(provenance: Mapping[str, object]) -> str:
    """Where numbers come from, in one line: `method sedir · setting unified · seed 0`."""
    return " · ".join(f"{key.replace('_', ' ')} {value}" for key, value in provenance.items())


def evaluation_frame(result: EvaluationResult, provenance: Mapping[str, object]) -> pd.DataFrame:
    """One row per category: the provenance's columns, then those of `EvaluationResult.to_frame`.

    With `method`, `setting`, `dataset`, `seed` and `protocol` in the provenance the rows are what `compare` takes.
    """
    frame = result.to_frame()
    if clash := sorted(set(provenance) & set(frame.columns)):
        raise InputError(f"provenance may not name the table's own columns: {', '.join(clash)}")
    for position, (key, value) in enumerate(provenance.items()):
        frame.insert(position, key, value)
    return frame


def evaluation_table(result: EvaluationResult, provenance: Mapping[str, object]) -> Table:
    """Rows are categories, with the macro mean and its 95 % interval under them; further metrics in the footer."""
    counts = ("clouds", "anomalous_clouds", "points")
    mean, undefined = result.mean, result.undefined
    totals = [f"{sum(getattr(row, name) for row in result.rows):,}" for name in counts]
    footer = [provenance_line(provenance)] if provenance else []
    footer += _further(result)
    if result.category_accuracy is not None:
        footer.append(f"Category accuracy {percent(result.category_accuracy)} %.")
    if any(undefined.values()):
        footer += [f"{note}." for note in result.notes]
    if result.repeats:
        footer.append(f"{result.repeats} repeated clouds were counted once.")
    return Table(
        columns=["category", *HEADINGS.values(), *(name.replace("_", " ") for name in counts)],
        rows=[_category_cells(row) for row in result.rows],
        summary=[["mean", *(percent(mean[m]) for m in METRICS), *totals], *_interval_row(result)],
        footer=footer,
    )


def _interval_row(result: EvaluationResult) -> list[list[str]]:
    cells = [percent_interval(result.mean_interval(m)) for m in METRICS]
    return [["95 % interval", *cells, "", "", ""]] if any(cells) else []


def _further(result: EvaluationResult) -> list[str]:
    """Means of the metrics that have no column, a sentence each."""
    lines = []
    if any(row.p_auroc_upper > row.p_auroc_lower for row in result.rows):
        worst = {m: max(row.largest_error(m) for row in result.rows) for m in POINT_METRICS}
        errors = ", ".join(f"{HEADINGS[m]} {100 * error:.2g}" for m, error in worst.items())
        lines.append(f"Point metrics from histograms; certain bounds on their error, at most: {errors}.")
    if not math.isnan(result.mean_of("o_f1_max")):
        lines.append(
            f"Largest F1 of any threshold: clouds {percent(result.mean_of('o_f1_max'))}, points "
            f"{percent(result.mean_of('p_f1_max'))}. Mean P-AUROC of single clouds: "
            f"{percent(result.mean_of('p_auroc_per_cloud'))}."
        )
    for level, what in (("o", "clouds"), ("p", "points")):
        precision, recall, f1 = (result.mean_of(f"{level}_{name}") for name in ("precision", "recall", "f1"))
        if not math.isnan(recall):
            cells = f"precision {percent(precision)}, recall {percent(recall)}, F1 {percent(f1)}"
            lines.append(f"At the threshold that the validation clouds chose, {what}: {cells}.")
    return lines


def _tex(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    return "".join(_TEX.get(character, character) for character in text)


def _category_cells(row: CategoryResult) -> list[str]:
    counts = (row.clouds, row.anomalous_clouds, row.points)
    return [row.category, *(percent(getattr(row, m)) for m in METRICS), *(f"{count:,}" for count in counts)]


def write_evaluation(
    result: EvaluationResult,
    provenance: Mapping[str, object],
    directory: Path | str,
    columns: Mapping[str, object] | None = None,
) -> tuple[Path, Path, Path]:
    """Write `metrics.csv`, `metrics.md` and `metrics.tex` into `directory`; returns the three paths.

    `provenance` stands under the table, `columns` (the same if not given) in every row of the CSV.
    """
    directory = Path(directory)
    rows = evaluation_frame(result, provenance if columns is None else columns)
    table = evaluation_table(result, provenance)
    return (
        write_text(directory / "metrics.csv", rows.to_csv(index=False)),
        write_text(directory / "metrics.md", table.markdown()),
        write_text(directory / "metrics.tex", table.latex()),
    )
