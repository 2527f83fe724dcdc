from fractions import Fraction

import pandas as pd
import pytest

from anomaly3d.errors import InputError
from anomaly3d.metrics.result import CategoryResult, EvaluationResult
from anomaly3d.report.comparison import write_comparison
from anomaly3d.report.results_csv import read_results
from anomaly3d.report.scores import Printed
from anomaly3d.report.tables import write_evaluation

HEADER = "dataset,metric,setting,method,category,percent\n"


def write(path, text):
    path.write_text(text)
    return path


def test_printed_is_rounded_or_cut_off():
    printed = Printed(842, 3)
    assert (printed.value, printed.low, printed.high) == (
        Fraction("0.842"),
        Fraction("0.8415"),
        Fraction("0.843"),
    )


def test_one_number_a_line(tmp_path):
    lines = "A,O-AUROC,unified,m,cup,84.2\nA,O-AUROC,unified,m,bed,70\nA,O-AUROC,unified,m,Mean,77.10\n"
    (scores,) = read_results([write(tmp_path / "a.csv", HEADER + lines)])
    assert (scores.dataset, scores.setting, scores.method, scores.metric) == ("A", "unified", "m", "o_auroc")
    # The cells have the longest one's digits, the mean its own: its zero counts.
    assert scores.cells == {"cup": Printed(842, 3), "bed": Printed(700, 3)}
    assert scores.means == [Printed(7710, 4)]


def test_a_summary_holds_means(tmp_path):
    text = "dataset,method,p_auroc_percent,o_aupr_percent,fps\nA,m,91.2,,17.3\n"
    (scores,) = read_results([write(tmp_path / "a.csv", text)])
    assert (scores.metric, scores.cells, scores.means) == ("p_auroc", {}, [Printed(912, 3)])


def test_a_tests_own_table_has_test_clouds(tmp_path):
    cup = CategoryResult("cup", 2 / 3, 0.75, 0.5, 0.25, 0.5, 18, 12, 1)
    bed = CategoryResult("bed", 0.5, 1.0, 0.5, 0.5, 0.5, 3, 3, 1)
    provenance = {"method": "SeDiR", "protocol": "strict", "seed": 3}
    csv, *_ = write_evaluation(EvaluationResult((cup, bed)), provenance, tmp_path)
    scores = read_results([csv])[0]
    assert (scores.dataset, scores.setting, scores.method) == ("", "strict, seed 3", "SeDiR")
    assert scores.cells["cup"] == Printed(666666667, 9)
    assert scores.clouds == {"cup": (6, 12)}  # without a normal cloud there is no AUROC to check


def test_compares_tables_join_cells_and_mean(tmp_path):
    values = {"o_auroc": [0.5, 0.75], "o_aupr": [0.5, 0.5], "p_auroc": [0.5, 0.5], "p_aupr": [0.5, 0.5]}
    runs = pd.DataFrame({"category": ["cup", "bed"], **values}).assign(
        method="m", setting="unified", dataset="A", protocol="strict"
    )
    runs = pd.concat([runs.assign(seed=seed) for seed in (0, 1)])
    files = [path for path in write_comparison(runs, tmp_path) if path.suffix == ".csv"]
    scores = read_results(files)[0]
    assert {name: cell.value for name, cell in scores.cells.items()} == {"cup": Fraction(1, 2), "bed": Fraction(3, 4)}
    assert [mean.value for mean in scores.means] == [Fraction(5, 8)]
    assert scores.seeds == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table of results"),
        ("method,category\nm,cup\n", "not a table of results"),
        (HEADER, "no numbers"),
        (HEADER + "A,O-AUROC,unified,m,cup,high\n", "line 2, column percent: 'high' is not a number"),
        (HEADER + "A,O-AUROC,unified,m,cup,101\n", "line 2, column percent: 101 is not a percentage"),
        (HEADER + "A,O-AUROC,unified,m,cup,inf\n", "inf is not a percentage"),
        (HEADER + "A,F1,unified,m,cup,50\n", "line 2: metric 'F1'; known are O-AUROC"),
        (HEADER + "A,O-AUROC,unified,m,cup\n", "line 2: not as many values as the header has columns"),
        (HEADER + "A,O-AUROC,unified,m,cup,50,60\n", "line 2: not as many values as the header has columns"),
        (HEADER + 2 * "A,O-AUROC,unified,m,cup,50\n", "line 3: a second value for A unified m o_auroc cup"),
        ("method,category,o_auroc\nm,cup,73.0\n", "73.0 is not a fraction; percentages need a column o_auroc_percent"),
        ("method,category,o_auroc,seeds\nm,cup,0.5,0\n", "column seeds: 0; a number is the mean"),
        ("method,category,o_auroc,clouds\nm,cup,0.5,few\n", "line 2, column clouds: 'few' is not a whole number"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(InputError, match=message) as error:
        read_results([path])
    assert str(path) in str(error.value)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "cloud.pcd").write_bytes(b"\x89PCD\xff")
    with pytest.raises(InputError, match=r"cloud\.pcd: not a CSV table"):
        read_results([tmp_path / "cloud.pcd"])
    with pytest.raises(InputError, match=r"missing\.csv: no such file"):
        read_results([tmp_path / "missing.csv"])
