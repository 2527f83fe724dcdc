import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from anomaly3d.errors import InputError
from anomaly3d.metrics.result import METRICS, CategoryResult, EvaluationResult
from anomaly3d.report.tables import Table, evaluation_frame, evaluation_table, percent, write_evaluation

PROVENANCE = {"method": "sedir", "setting": "unified", "dataset": "Anomaly|ShapeNet", "seed": 3, "protocol": "strict"}
COUNTS = ("clouds", "anomalous clouds", "points")
NOTE = "P-AUROC and P-AUPR undefined and left out of the mean for bed: not every cloud has a point mask"
RESULT = EvaluationResult(
    rows=(
        CategoryResult(
            *("cup", 0.91234567890123, 0.5, 0.75, 1 / 3, 0.625, 24, 14, 270000),
            p_auroc_per_cloud=0.7,
            o_f1_max=0.88,
            p_f1_max=0.44,
            p_auroc_lower=0.7498,
            p_auroc_upper=0.7502,
            p_aupr_lower=0.333,
            p_aupr_upper=0.334,
            aupro_lower=0.625,
            aupro_upper=0.625,
            p_precision=0.2,
            p_recall=0.6,
            p_f1=0.3,
            o_auroc_ci_low=0.85,
            o_auroc_ci_high=0.95,
        ),
        CategoryResult(
            "bed", 0.8, 1.0, math.nan, math.nan, math.nan, 10, 4, 1000, o_auroc_ci_low=0.6, o_auroc_ci_high=0.9
        ),
    ),
    notes=(NOTE,),
    category_accuracy=0.97,
    repeats=2,
)


def parse(markdown: str) -> tuple[list[str], list[list[str]]]:
    """Heading and body cells of the first Markdown table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").replace(r"\|", "\0").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert all(set(cell) <= {":", "-"} for cell in cells[1])
    cells = [[cell.replace("\0", "|") for cell in row] for row in cells]
    return cells[0], cells[2:]


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (0.91249, math.nan, "91.2"),
        (1.0, math.nan, "100.0"),
        (0.0, math.nan, "0.0"),
        (math.nan, math.nan, "–"),
        (0.5, 0.0123, "50.0 ± 1.2"),
    ],
)
def test_percent(value, std, text):
    assert percent(value, std) == text


def test_csv_round_trip(tmp_path):
    csv, *_ = write_evaluation(RESULT, PROVENANCE, tmp_path)
    read = pd.read_csv(csv)
    pd.testing.assert_frame_equal(read, evaluation_frame(RESULT, PROVENANCE), check_exact=True)
    columns = [*PROVENANCE, "category", *METRICS, "clouds", "anomalous_clouds", "points"]
    assert list(read.columns)[: len(columns)] == columns
    assert list(read.category) == ["cup", "bed"]  # no mean row to be averaged again
    assert read.o_auroc[0] == RESULT.rows[0].o_auroc


def test_markdown_holds_the_numbers_and_what_they_leave_out(tmp_path):
    _, path, _ = write_evaluation(RESULT, PROVENANCE, tmp_path)
    text = path.read_text(encoding="utf-8")
    heading, body = parse(text)
    assert heading == ["category", "O-AUROC", "O-AUPR", "P-AUROC", "P-AUPR", "AUPRO", *COUNTS]
    # sqrt(6.23^2 + 20^2) / 2 below and sqrt(3.77^2 + 10^2) / 2 above
    assert body == [
        ["cup", "91.2", "50.0", "75.0", "33.3", "62.5", "24", "14", "270,000"],
        ["bed", "80.0", "100.0", "–", "–", "–", "10", "4", "1,000"],
        ["**mean**", "**85.6**", "**75.0**", "**75.0**", "**33.3**", "**62.5**", "**34**", "**18**", "**271,000**"],
        ["**95 % interval**", "**75.1 – 91.0**", "", "", "", "", "", "", ""],
    ]
    assert "certain bounds on their error, at most: P-AUROC 0.02, P-AUPR 0.067, AUPRO 0." in text
    assert "Largest F1 of any threshold: clouds 88.0, points 44.0. Mean P-AUROC of single clouds: 70.0." in text
    assert "At the threshold that the validation clouds chose, points: precision 20.0, recall 60.0, F1 30.0." in text
    assert "chose, clouds" not in text
    assert "method sedir · setting unified · dataset Anomaly|ShapeNet · seed 3 · protocol strict" in text
    assert NOTE in text
    assert "Category accuracy 97.0 %" in text
    assert "2 repeated clouds were counted once" in text


def test_provenance_may_not_shadow_a_column():
    with pytest.raises(InputError, match="category"):
        evaluation_frame(RESULT, {"category": "all"})


def test_bars_in_names_do_not_break_the_markdown():
    heading, body = parse(Table(["na|me", "x"], [["a|b", "1"]]).markdown())
    assert heading == ["na|me", "x"]
    assert body == [["a|b", "1"]]


@pytest.mark.parametrize("width", [80, 120])
def test_console_shows_every_number_whole(width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(evaluation_table(RESULT, {"note": "[bold]not markup"}).console())
    text = console.export_text()
    numbers = set(text.split())
    assert {"91.2", "50.0", "75.0", "33.3", "80.0", "100.0", "–", "85.6", "270,000", "271,000"} <= numbers
    assert "[bold]not markup" in text


def test_mean_of_the_table_is_the_mean_of_the_result():
    mean = parse(evaluation_table(RESULT, {}).markdown())[1][-2]
    expected = [np.nanmean([getattr(row, m) for row in RESULT.rows]) for m in METRICS]
    assert mean[1:6] == [f"**{100 * value:.1f}**" for value in expected]


def test_latex_has_the_same_cells_and_is_escaped(tmp_path):
    *_, path = write_evaluation(RESULT, PROVENANCE, tmp_path)
    text = path.read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in text.splitlines() if " & " in line
    ]
    assert rows[1] == ["cup", "91.2", "50.0", "75.0", "33.3", "62.5", "24", "14", "270,000"]
    assert rows[-1][:2] == [r"95 \% interval", "75.1 -- 91.0"]
    assert text.count(r"\midrule") == 2
    assert all(len(row) == 9 for row in rows)
    assert r"\begin{tabular}{lrrrrrrrr}" in text
    assert Table(["a_b", "x"], [["50 % & {c}", "1 ± 2"]]).latex().count(r"50 \% \& \{c\} & 1 $\pm$ 2 \\") == 1


def test_rows_of_the_csv_can_carry_more_than_stands_under_the_table(tmp_path):
    csv, markdown, _ = write_evaluation(RESULT, {"seed": 3}, tmp_path, {"seed": 3, "config_sha256": "ab12"})
    assert pd.read_csv(csv)["config_sha256"].tolist() == ["ab12"] * 2
    assert "ab12" not in markdown.read_text(encoding="utf-8")
