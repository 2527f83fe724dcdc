"""`anomaly3d compare`: from a grid to a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly3d.compare.collect import collect, ranked
from anomaly3d.compare.devices import gpus
from anomaly3d.compare.execute import execute_all
from anomaly3d.compare.grid import Method, Run, Setting, Split, expand
from anomaly3d.compare.lock import only_one
from anomaly3d.compare.pictures import draw_heatmaps
from anomaly3d.data.digest import data_digest
from anomaly3d.errors import InputError
from anomaly3d.metrics.result import METRICS
from anomaly3d.report.comparison import comparison_tables, write_comparison
from anomaly3d.report.costs import cost_tables
from anomaly3d.report.files import write_text
from anomaly3d.report.published import MEAN, Reported, read_published
from anomaly3d.report.tables import table_console


def compare(
    methods: dict[str, Method],
    output: Path,
    settings: list[Setting] | None = None,
    seeds: list[int] | None = None,
    overrides: dict[str, Any] | None = None,
    jobs: int | None = None,
    split: Split = "test",
    rank: str | None = None,
    reported: Reported | None = None,
    datasets: dict[str, dict[str, str | Any]] | None = None,
) -> None:
    """Train and test every method in every setting; write the table and a picture of heat maps.

    Each run has a process and a folder of its own. Started again after a kill, finished runs are kept and a
    broken one goes on from its last epoch; on the CPU the tables are the same, byte for byte. A run whose recipe,
    weights or data have changed since begins anew.

    Args:
        methods: rows of the table: name, recipe (`config`) and, where needed, `overrides` of it and `published` values.
        output: folder of the results: `comparison.md`, `.csv`, `.tex`, the same by category, `heatmaps.png`, `runs/`,
            `runs.csv` with every number of every run and where it comes from, `costs.md` with time and memory.
        settings: `unified` (one model for all categories) and `per-category` (one model each); both by default.
        seeds: one run per seed; default [0].
        overrides: values for every run by dotted key, e.g. `{data.root: DIR, trainer.max_epochs: 10}`.
        jobs: runs at a time, among which GPUs and cores are shared; default: one per GPU, or one without any.
        split: `test`, or `validation` for numbers from training clouds alone, to choose settings by.
        rank: metric by whose mean the rows are ordered, the best first; by default they stand as given.
        reported: published tables, whose values stand beside those of the methods that have the same names there, e.g.
            `{files: [benchmarks/reported/sedir_per_category.csv], dataset: Real3D-AD}`.
        datasets: more than one data set: the values that lead to each, by its name, e.g. `{demo: {data.root:
            datasets/demo}, scans: {data: configs/data/real3d_ad.yaml, data.root: DIR}}`; a table and a picture of each.

    Raises:
        InputError: published values are given for several data sets, a recipe is missing, the data can't be read, or a
            run failed (with its log's last lines).
    """
    _check(methods, overrides or {}, seeds, jobs, rank)
    published = read_published(reported) if reported is not None else {}
    for name, method in methods.items():
        published |= {(name, "", metric, MEAN): value / 100 for metric, value in method.published.items()}
    if published and datasets and len(datasets) > 1:
        raise InputError("published values are of one data set; run `compare` once for each")
    runs = [
        run
        for name, values in (datasets or {"": {}}).items()
        for run in grid(
            methods,
            output,
            settings or ["unified", "per-category"],
            seeds or [0],
            {**(overrides or {}), **values},
            split,
            name,
        )
    ]
    console = table_console()
    with only_one(output) as lock:
        waiting = [run for run in runs if not finished(run)]
        console.print(f"{len(runs)} runs in {output}, {len(runs) - len(waiting)} of them finished before")
        execute_all(waiting, jobs or max(1, len(gpus())), lock)
    rows, lines = collect(runs)
    if rank is not None:
        rows = ranked(rows, rank)
    for table in comparison_tables(rows, lines, published):
        console.print(table.console())
    written: list[Path | None] = [*write_comparison(rows, output, lines, published)]
    for name in dict.fromkeys(run.dataset for run in runs):
        picture = output / (f"heatmaps_{name}.png" if name else "heatmaps.png")
        written.append(draw_heatmaps([run for run in runs if run.dataset == name], picture))
    written.append(write_text(output / "runs.csv", rows.to_csv(index=False)))
    costs = "\n".join(table.markdown() for table in cost_tables(rows, lines[-1]))
    written.append(write_text(output / "costs.md", costs))
    console.print("written:", *(str(path) for path in written if path is not None), sep="\n  ")


def grid(
    methods: dict[str, Method],
    output: Path,
    settings: list[Setting],
    seeds: list[int],
    overrides: dict[str, Any],
    split: Split,
    dataset: str = "",
) -> Iterator[Run]:
    """The runs on one data set; asks the first recipe's data module for the categories, and hashes their data."""
    from anomaly3d.lit.cli import DataCLI

    for name, method in methods.items():
        if not method.config.is_file():
            raise InputError(f"{method.config}: no such recipe (method '{name}')")
        if unknown := sorted(set(method.published) - set(METRICS)):
            raise InputError(f"published of '{name}': no metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    first = next(iter(methods.values()), None)
    if first is None:
        raise InputError("methods: none given; name at least one, e.g. --methods.SeDiR.config FILE")
    probe = Run("", "unified", 0, (), first.config, {**overrides, **first.overrides}, output)
    data = DataCLI(probe.arguments).datamodule
    data.setup("fit")
    records = [*data.records("train"), *data.records("val")]
    if split == "test":
        data.setup("test")
        records += data.records("test")
    # The clouds to validate on may be those that are trained on.
    of = {name: {r.sample_id: r for r in records if r.category == name} for name in data.category_names}
    digests = {name: data_digest(records.values()) for name, records in of.items()}
    return expand(methods, settings, seeds, digests, overrides, output, split, dataset)


def _check(
    methods: dict[str, Method], overrides: dict[str, Any], seeds: list[int] | None, jobs: int | None, rank: str | None
) -> None:
    """What would be ignored, or fail only behind all runs, fails now."""
    if rank is not None and rank not in METRICS:
        raise InputError(f"rank: no metric '{rank}'; choose from {', '.join(METRICS)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: {jobs}; at least one run at a time")
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: {seeds}; each one once")
    for name, values in {"overrides": overrides, **{n: method.overrides for n, method in methods.items()}}.items():
        if "seed_everything" in values:
            raise InputError(f"{name}: seed_everything is the grid's; give --seeds")
        if "data.categories" in values and name != "overrides":
            raise InputError(f"{name}: data.categories are the same for all rows; give --overrides.data.categories")


def finished(run: Run) -> bool:
    """Whether the run's record is there and belongs to exactly these settings."""
    record = run.folder / "record.json"
    return record.exists() and json.loads(record.read_text())["fingerprint"] == run.fingerprint
