import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_tables import PROVENANCE, RESULT, parse

from anomaly3d.errors import InputError
from anomaly3d.metrics.result import METRICS
from anomaly3d.report.comparison import (
    category_tables,
    compare,
    compare_categories,
    comparison_tables,
    write_comparison,
)
from anomaly3d.report.published import MEAN, STATED, Reported, published_mean, published_of, read_published
from anomaly3d.report.results_csv import read_results
from anomaly3d.report.tables import evaluation_frame

CATEGORIES = ["cup", "bed", "vase"]


def make_runs(seeds: tuple[int, ...] = (0, 1, 2), datasets: tuple[str, ...] = ("B-set", "A-set")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    keys = itertools.product(["sedir", "mamba3dad"], ["unified", "per-category"], datasets, seeds, CATEGORIES)
    return pd.DataFrame(
        {
            "method": method,
            "setting": setting,
            "dataset": dataset,
            "seed": seed,
            "protocol": "paper" if method == "mamba3dad" else "strict",
            "category": category,
            **{metric: rng.random() for metric in METRICS},
            "device": "cpu",
        }
        for method, setting, dataset, seed, category in keys
    )


def naive(runs: pd.DataFrame, method: str, setting: str, dataset: str, metric: str) -> tuple[float, float]:
    means = {}
    for row in runs.to_dict("records"):
        if (row["method"], row["setting"], row["dataset"]) == (method, setting, dataset):
            means.setdefault(row["seed"], []).append(row[metric])
    per_seed = [np.nanmean(values) for values in means.values()]
    return float(np.mean(per_seed)), float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else math.nan


@pytest.mark.parametrize("seeds", [(0, 1, 2), (7,)])
def test_means_and_deviations_equal_a_loop(seeds):
    runs = make_runs(seeds)
    runs.loc[runs.category == "bed", "p_auroc"] = math.nan
    table = compare(runs.sample(frac=1, random_state=0))
    assert len(table) == 8
    assert set(table.seeds) == {len(seeds)}
    assert set(table.categories) == {2}
    for row in table.to_dict("records"):
        for metric in METRICS:
            expected = naive(runs, row["method"], row["setting"], row["dataset"], metric)
            assert (row[f"{metric}_mean"], row[f"{metric}_std"]) == pytest.approx(expected, nan_ok=True)


def test_rows_and_tables_come_in_order_of_appearance():
    runs = make_runs((0,))
    order = list(compare(runs)[["method", "setting", "dataset"]].itertuples(index=False, name=None))
    assert order == list(itertools.product(["sedir", "mamba3dad"], ["unified", "per-category"], ["B-set", "A-set"]))
    assert [table.title for table in comparison_tables(runs)] == ["B-set", "A-set"]


def test_table_shows_percent_deviation_protocol_and_provenance():
    runs = make_runs()
    table = comparison_tables(runs, ["commit 12ab · torch 2.13"])[0].markdown()
    heading, body = parse(table)
    assert heading == ["method", "setting", "protocol", "O-AUROC", "O-AUPR", "P-AUROC", "P-AUPR", "AUPRO", "seeds"]
    mean, std = naive(runs, "mamba3dad", "per-category", "B-set", "p_aupr")
    assert body[3] == [
        "mamba3dad",
        "per-category",
        "paper",
        *body[3][3:6],
        f"{100 * mean:.1f} ± {100 * std:.1f}",
        body[3][7],
        "3",
    ]
    assert "Percent; mean over 3 of 3 categories, ± sample deviation over seeds." in table
    assert table.rstrip().endswith("commit 12ab · torch 2.13")
    assert "±" not in comparison_tables(make_runs((0,)))[0].markdown()


PUBLISHED = {
    ("sedir", "unified", "o_auroc", STATED): 0.81,
    ("sedir", "unified", "o_auroc", "bed"): 0.625,
    ("mamba3dad", "", "p_aupr", STATED): 0.2,
    ("nobody", "", "aupro", "mean"): 0.5,
}


def test_published_values_stand_in_columns_of_their_own():
    table = comparison_tables(make_runs(), published=PUBLISHED)[0]
    assert table.columns[-5:] == [
        "seeds",
        *(f"{m} {w}" for m in ("O-AUROC", "P-AUPR") for w in ("published", "difference")),
    ]
    ours = {
        (method, setting, metric): 100 * naive(make_runs(), method, setting, "B-set", metric)[0]
        for method, setting, metric in itertools.product(("sedir", "mamba3dad"), ("unified", "per-category"), METRICS)
    }
    assert [row[-4:] for row in table.rows] == [
        ["81.0", f"{ours['sedir', 'unified', 'o_auroc'] - 81:+.1f}", "", ""],
        ["", "", "", ""],  # published of the unified model only
        ["", "", "20.0", f"{ours['mamba3dad', 'unified', 'p_aupr'] - 20:+.1f}"],
        ["", "", "20.0", f"{ours['mamba3dad', 'per-category', 'p_aupr'] - 20:+.1f}"],  # no setting is named
    ]
    assert comparison_tables(make_runs())[0].columns[-1] == "seeds"
    assert any("Published: what the papers report" in line for line in table.footer)


def test_published_values_stand_by_category_too_and_in_every_format(tmp_path):
    runs = make_runs(datasets=("A-set",))
    table = category_tables(runs, "o_auroc", published=PUBLISHED)[0]
    assert table.columns[:4] == ["category", "sedir (unified, strict)", "published", "difference"]
    assert len(table.columns) == 1 + 4 + 2
    mine = runs[(runs.method == "sedir") & (runs.setting == "unified")]
    bed = 100 * float(
        np.mean([score for name, score in zip(mine.category, mine.o_auroc, strict=True) if name == "bed"])
    )
    cells = {row[0]: row[2:4] for row in [*table.rows, *table.summary]}
    assert cells == {
        "cup": ["", ""],
        "bed": ["62.5", f"{bed - 62.5:+.1f}"],
        "vase": ["", ""],
        "mean": ["81.0", f"{100 * mine.o_auroc.mean() - 81:+.1f}"],
    }

    write_comparison(runs, tmp_path, published=PUBLISHED)
    for name in ("comparison", "comparison_by_category"):
        assert "81.0" in (tmp_path / f"{name}.md").read_text()
        assert "& 81.0 &" in (tmp_path / f"{name}.tex").read_text()
    table = pd.read_csv(tmp_path / "comparison_by_category.csv").set_index(["method", "setting", "category"])
    assert table.loc[("sedir", "unified", "bed"), "o_auroc_published"] == 0.625
    assert table.loc[("sedir", "unified", "bed"), "o_auroc_difference"] == pytest.approx(bed / 100 - 0.625)
    assert table["o_auroc_published"].notna().to_numpy().sum() == 1
    table = pd.read_csv(tmp_path / "comparison.csv").set_index(["method", "setting"])
    assert table["o_auroc_published"].tolist() == [0.81, *[pytest.approx(math.nan, nan_ok=True)] * 3]
    assert table["p_aupr_published"].notna().tolist() == [False, False, True, True]
    assert "aupro_published" not in table


def test_published_tables_give_cells_and_printed_means():
    file = Path(__file__).parents[2] / "benchmarks/reported/sedir_per_category.csv"
    found = read_published(Reported([file], "Real3D-AD"))
    assert found["SeDiR", "unified", "o_auroc", "mean"] == 0.81
    assert found["BTF(Raw)", "per-category", "o_auroc", "airplane"] == 0.73
    assert published_of(found, "SeDiR", "unified", "p_auroc", MEAN) == 0.806
    assert published_of(found, "SeDiR", "per-category", "o_auroc", MEAN) is None
    with pytest.raises(InputError, match="no data set 'demo' in the tables; choose from Real3D-AD, Anomaly-ShapeNet"):
        read_published(Reported([file], "demo"))


def test_a_published_mean_is_over_the_categories_that_were_run():
    cells = {
        ("sedir", "unified", "o_auroc", name): value for name, value in (("bed", 0.9), ("cup", 0.7), ("vase", 0.2))
    }
    whole = {**cells, ("sedir", "unified", "o_auroc", MEAN): 0.61}

    def mean(published, categories):
        return published_mean(published, "sedir", "unified", "o_auroc", categories)

    assert mean(whole, {"bed", "cup", "vase"}) == 0.61  # as it is printed
    assert mean(whole, {"bed", "cup"}) == pytest.approx(0.8)
    assert mean(whole, {"bed", "gear"}) is None
    assert mean({("sedir", "", "o_auroc", MEAN): 0.61}, {"bed", "gear"}) == 0.61  # its categories are not known
    assert mean({**whole, ("sedir", "", "o_auroc", STATED): 0.5}, {"bed", "gear"}) == 0.5
    assert mean({}, {"bed"}) is None
    assert mean(cells, {"bed", "cup", "vase"}) == pytest.approx(0.6)  # no mean is printed
    assert mean(whole, set()) is None  # undefined in every category

    runs = make_runs(datasets=("A-set",))
    some = runs.query("category in ['bed', 'cup']")
    row = comparison_tables(some, published=whole)[0].rows[0]
    assert row[-2] == "80.0"
    assert row[-1] == f"{100 * naive(some, 'sedir', 'unified', 'A-set', 'o_auroc')[0] - 80:+.1f}"


def test_a_mean_over_fewer_categories_is_pointed_out():
    runs = make_runs()
    missing = (runs.method == "sedir") & (runs.setting == "unified") & (runs.seed == 1) & (runs.category == "bed")
    text = "\n".join(table.markdown() for table in comparison_tables(runs.drop(index=runs.index[missing])))
    assert text.count("sedir (unified, strict) has a mean over 2 categories only") == 2  # one per data set
    assert "sedir (per-category, strict) has" not in text


def test_a_metric_that_no_category_defines_is_a_dash():
    runs = make_runs((0,), ("A-set",))
    runs["p_auroc"] = runs["p_aupr"] = math.nan
    heading, body = parse(comparison_tables(runs)[0].markdown())
    assert {row[heading.index("P-AUROC")] for row in body} == {"–"}
    assert set(compare(runs).categories) == {3}


def test_category_tables_hold_each_cell_and_the_means():
    runs = make_runs(datasets=("A-set",))
    table = category_tables(runs, "o_aupr", ["device cpu"])[0]
    heading, body = parse(table.markdown())
    assert table.title == "A-set: O-AUPR"
    assert heading[1:3] == ["sedir (unified, strict)", "sedir (per-category, strict)"]
    assert [row[0] for row in body] == [*CATEGORIES, "**mean**"]
    cell = runs[(runs.method == "sedir") & (runs.setting == "per-category") & (runs.category == "vase")].o_aupr
    assert body[2][2] == f"{100 * cell.mean():.1f} ± {100 * cell.std():.1f}"
    mean, std = naive(runs, "sedir", "unified", "A-set", "o_aupr")
    assert body[3][1] == f"**{100 * mean:.1f} ± {100 * std:.1f}**"


def test_files_round_trip(tmp_path):
    runs = make_runs()
    paths = write_comparison(runs, tmp_path / "tables", ["commit 12ab"])
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(path.name for path in paths)
    read = [pd.read_csv(tmp_path / "tables" / f"{name}.csv") for name in ("comparison", "comparison_by_category")]
    pd.testing.assert_frame_equal(read[0], compare(runs), check_exact=True)
    pd.testing.assert_frame_equal(read[1], compare_categories(runs), check_exact=True)
    assert len(read[1]) == 8 * len(CATEGORIES)
    by_category = (tmp_path / "tables" / "comparison_by_category.md").read_text(encoding="utf-8")
    assert by_category.count("commit 12ab") == 2 * len(METRICS)


def test_files_of_single_evaluations_can_be_compared():
    other = {**PROVENANCE, "seed": 4}
    runs = pd.concat([evaluation_frame(RESULT, PROVENANCE), evaluation_frame(RESULT, other)])
    (row,) = compare(runs).to_dict("records")
    assert row["seeds"] == 2
    assert row["o_aupr_mean"] == RESULT.mean["o_aupr"]
    assert row["o_aupr_std"] == 0
    assert row["categories"] == 1  # the point metrics are of cup alone


def test_bad_tables_of_runs_are_refused():
    runs = make_runs((0,))
    with pytest.raises(InputError, match="lacks the columns seed, p_aupr"):
        compare(runs.drop(columns=["seed", "p_aupr"]))
    with pytest.raises(InputError, match="more than one row for method sedir, setting unified"):
        compare(pd.concat([runs, runs.iloc[:1]]))


def with_intervals_and_clouds(runs: pd.DataFrame) -> pd.DataFrame:
    ends = {f"{m}_ci_{end}": runs[m] + shift for m in METRICS for end, shift in (("low", -0.06), ("high", 0.03))}
    return runs.assign(**ends, clouds=24, anomalous_clouds=14)


def test_intervals_and_clouds_are_carried_along(tmp_path):
    runs = with_intervals_and_clouds(make_runs(datasets=("A-set",)))
    table = compare(runs)
    assert set(table.clouds) == {3 * 24}
    assert set(table.anomalous_clouds) == {3 * 14}
    # Three independent categories with equal intervals: those of the mean are sqrt(3) times narrower.
    for low, mean, high in zip(table.o_aupr_ci_low, table.o_aupr_mean, table.o_aupr_ci_high, strict=True):
        assert (mean - low, high - mean) == pytest.approx((0.06 / math.sqrt(3), 0.03 / math.sqrt(3)))
    cells = compare_categories(runs)
    assert set(cells.clouds) == {24}
    np.testing.assert_allclose(cells.aupro_ci_low, cells.aupro_mean - 0.06)

    heading, body = parse(comparison_tables(runs)[0].markdown())
    low, high = table.o_auroc_ci_low[0], table.o_auroc_ci_high[0]
    assert body[0][heading.index("O-AUROC 95 %")] == f"{100 * low:.1f} – {100 * high:.1f}"
    by_category = category_tables(runs, "o_aupr")[0].rows[0][1]
    assert by_category.endswith(f" [{100 * cells.o_aupr_ci_low[0]:.1f} – {100 * cells.o_aupr_ci_high[0]:.1f}]")

    csv = next(path for path in write_comparison(runs, tmp_path) if path.name == "comparison_by_category.csv")
    scores = [entry for entry in read_results([csv]) if entry.metric == "o_auroc"]
    assert scores[0].clouds == dict.fromkeys(CATEGORIES, (10, 14))


def test_runs_of_older_versions_have_no_aupro_and_no_intervals():
    runs = make_runs((0,)).drop(columns="aupro")
    heading, body = parse(comparison_tables(runs)[0].markdown())
    assert {row[heading.index("AUPRO")] for row in body} == {"–"}
    assert "O-AUROC 95 %" not in heading
    assert set(compare(runs).categories) == {3}


def test_bounds_of_point_metrics_stand_below_where_there_are_any():
    runs = make_runs()
    assert not any("certain bounds" in line for line in comparison_tables(runs)[0].footer)
    methods = list(dict.fromkeys(runs["method"]))
    for metric in ("p_auroc", "p_aupr", "aupro"):  # the first method has none, as records of older versions
        known = runs["method"] != methods[0]
        runs[f"{metric}_lower"] = (runs[metric] - 0.01).where(known)
        runs[f"{metric}_upper"] = (runs[metric] + 0.02).where(known)
    (line,) = [line for line in comparison_tables(runs)[0].footer if "certain bounds" in line]
    assert "P-AUROC 2, P-AUPR 2, AUPRO 2" in line


def test_latex_of_any_name_is_text(tmp_path):
    write_comparison(make_runs().assign(dataset=r"a\b^c~d_50%", seed=lambda runs: range(len(runs))), tmp_path)
    text = (tmp_path / "comparison.tex").read_text(encoding="utf-8")
    assert r"a\textbackslash{}b\textasciicircum{}c\textasciitilde{}d\_50\%" in text


def test_latex_stands_beside_markdown(tmp_path):
    write_comparison(make_runs(), tmp_path)
    text = (tmp_path / "comparison.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == 2
    assert text.count("$\\pm$") == 2 * 4 * len(METRICS) + 2  # every cell, and once in each caption
