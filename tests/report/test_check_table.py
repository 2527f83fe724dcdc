from pathlib import Path

import pytest

from anomaly3d.__main__ import main
from anomaly3d.report.results_csv import read_results
from anomaly3d.report.scores import Printed, Scores
from anomaly3d.report.table_checks import attainable_table, means_table, precision_table

ROOT = Path(__file__).parents[2]
REPORTED = [f"benchmarks/reported/{name}.csv" for name in ("sedir_per_category", "mamba3dad_summary")]
SHAPENET = "Anomaly-ShapeNet"


@pytest.fixture(scope="module")
def reported() -> list[Scores]:
    return read_results([ROOT / name for name in REPORTED])


def printed(percent: float) -> Printed:
    return Printed(round(percent * 10), 3)


def entry(metric="o_auroc", dataset="mine", **percents) -> Scores:
    return Scores(dataset, "unified", "m", metric, {name: printed(value) for name, value in percents.items()})


def test_reported_means_that_are_not_their_cells(reported):
    rows = {(row[0], row[1], row[3]): (row[4], row[5]) for row in means_table(reported).rows}
    assert rows == {
        ("Real3D-AD", "ISMP", "O-AUROC"): ("76.7", "75.7"),
        ("Real3D-AD", "M3DM", "O-AUROC"): ("59.4", "55.2"),
        ("Real3D-AD", "M3DM", "P-AUROC"): ("62.0", "63.1"),
        (SHAPENET, "MC3D-AD", "O-AUROC"): ("84.2", "83.6"),
        (SHAPENET, "R3D-AD", "O-AUROC"): ("74.9", "74.7"),
        (SHAPENET, "BTF(FPFH)", "O-AUROC"): ("52.8", "53.2"),
        (SHAPENET, "M3DM", "O-AUROC"): ("55.2", "56.2"),
        (SHAPENET, "PatchCore(FPFH)", "O-AUROC"): ("56.8", "57.3"),
        (SHAPENET, "CPMF", "O-AUROC"): ("55.9", "56.1"),
        (SHAPENET, "Reg3D-AD", "O-AUROC"): ("57.2", "57.4"),
    }


def test_reported_cells_that_the_released_split_allows(reported):
    table = attainable_table(reported)
    assert {row[1]: int(row[4]) for row in table.rows} == {
        "SeDiR": 40,
        "MC3D-AD": 40,
        "PO3AD": 40,
        "R3D-AD": 36,
        "IMRNet": 30,
        "Reg3D-AD": 26,
        "BTF(FPFH)": 18,
        "PatchCore(FPFH)": 18,
        "PatchCore(PointMAE)": 16,
        "BTF(Raw)": 14,
        "M3DM": 12,
        "CPMF": 8,
    }
    assert {row[5] for row in table.rows} == {"15.9"}
    assert any(note.startswith("Real3D-AD: has so many") for note in table.footer)


def test_reported_average_precisions_above_what_the_auroc_allows(reported):
    means = {row[1]: row[4:] for row in precision_table(reported).rows if row[3] == "mean"}
    assert means == {"Mamba3dAD": ["86.8", "98.7", "94.2", "94.8"], "Group3AD": ["81.4", "95.3", "91.5", "92.6"]}


@pytest.mark.parametrize(
    ("mean", "wrong"),
    [(75.0, False), (75.1, False), (74.9, False), (75.2, True), (74.8, True)],
)
def test_means_may_differ_by_what_rounding_or_cutting_off_explains(mean, wrong):
    scores = entry(cup=70.0, bed=80.0)
    scores.means = [printed(mean)]
    assert bool(means_table([scores]).rows) is wrong


@pytest.mark.parametrize(
    ("percent", "untied", "tied"),
    [(33.3, 1, 1), (33.4, 0, 0), (66.6, 1, 1), (66.7, 1, 1), (16.6, 0, 1), (100.0, 1, 1)],
)
def test_attainable_of_three_pairs(percent, untied, tied):
    scores = entry(cup=percent)
    scores.clouds = {"cup": (1, 3)}
    (row,) = attainable_table([scores]).rows
    # 0.0, 33.3, 66.6, 66.7 and 100.0 of 1001 numbers; with ties 16.6, 16.7, 50.0, 83.3 too.
    assert row[3:] == ["1", str(untied), "0.0", str(tied), "0.0"]


def test_means_over_seeds_have_a_finer_grid():
    scores = entry(cup=50.0)
    scores.clouds = {"cup": (1, 3)}
    scores.seeds = 2
    assert attainable_table([scores]).rows[0][4] == "1"


def test_categories_of_unknown_size_are_named():
    table = attainable_table([entry(dataset=SHAPENET, cup0=50.0, teapot=50.0)])
    assert [row[3] for row in table.rows] == ["1"]
    assert any("teapot" in note and "anomalous_clouds" in note for note in table.footer)


@pytest.mark.parametrize(
    ("seeds", "aupr", "wrong"),
    [
        # 3 of 4 pairs in order: the ranking + - + - has the largest AP, (1 + 2/3) / 2 = 0.8333.
        (1, 83.3, False),
        (1, 83.4, True),
        # Two runs may have AUROC 1 and 0.5, AP 1 and (1 + 2/4) / 2: 0.875 in the mean.
        (2, 87.5, False),
        (2, 87.7, True),
    ],
)
def test_average_precision_of_two_normal_and_two_anomalous_clouds(seeds, aupr, wrong):
    scores = [entry(cup=75.0), entry("o_aupr", cup=aupr)]
    scores[0].clouds = {"cup": (2, 2)}
    scores[0].seeds = seeds
    assert bool(precision_table(scores).rows) is wrong


def test_rankings_of_too_many_clouds_are_counted_as_unchecked():
    scores = [entry(cup=75.0), entry("o_aupr", cup=99.9)]
    scores[0].clouds = {"cup": (1000, 1000)}
    table = precision_table(scores)
    assert not table.rows
    assert "1 more is not checked" in table.footer[-1]


def test_cells_of_too_many_steps_are_named():
    many = entry(bed=50.0)
    many.cells["cup"] = Printed(750_000_000_001, 12)
    many.clouds = {"cup": (20_000, 20_000), "bed": (2, 3)}
    table = attainable_table([many])
    assert table.rows[0][3] == "1"
    assert any("not checked are cup" in note for note in table.footer)


def test_the_documented_report_is_what_the_command_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["check-table", *REPORTED, "--output", str(tmp_path / "report.md")])
    assert "written:" in capsys.readouterr().out
    assert (tmp_path / "report.md").read_text() == (ROOT / "benchmarks/results/check_table.md").read_text()


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    output = tmp_path / "report.md"
    with pytest.raises(SystemExit) as status:
        main(["check-table", str(tmp_path / "nothing.csv"), "--output", str(output)])
    assert status.value.code == 2
    assert capsys.readouterr().err == f"anomaly3d: {tmp_path}/nothing.csv: no such file.\n"
    assert not output.exists()


def test_a_folder_stands_for_its_tables(tmp_path, capsys):
    main(["check-table", str(ROOT / "benchmarks/reported"), "--output", str(tmp_path / "all.md")])
    main(["check-table", *(str(ROOT / name) for name in sorted(REPORTED)), "--output", str(tmp_path / "each.md")])
    assert (tmp_path / "all.md").read_text() == (tmp_path / "each.md").read_text()
    for arguments, says in (
        ([str(tmp_path)], "no .csv in this folder"),
        ([str(ROOT / REPORTED[0]), "--output", str(tmp_path)], "can't be written"),
    ):
        with pytest.raises(SystemExit):
            main(["check-table", *arguments])
        assert f"{tmp_path}: {says}" in capsys.readouterr().err


def test_means_alone_are_nothing_to_check(tmp_path, capsys):
    means, cells = tmp_path / "comparison.csv", tmp_path / "comparison_by_category.csv"
    means.write_text("dataset,method,o_auroc_mean\nmine,A,0.75\n")
    cells.write_text("dataset,method,category,o_auroc_mean\nmine,A,x,0.52\nmine,A,y,0.93\n")
    with pytest.raises(SystemExit):
        main(["check-table", str(means)])
    assert "comparison.csv: nothing to check, only means" in capsys.readouterr().err
    main(["check-table", str(means), str(cells)])
    assert "1 of 1 printed means are not the mean of their cells" in capsys.readouterr().out
