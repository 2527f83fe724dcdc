"""`anomaly3d compare`: from a grid to a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anomaly3d.compare.collect import collect, ranked
from anomaly3d.compare.devices import gpus
from anomaly3d.compare.execute import execute_all
from anomaly3d.compare.grid import Method, Run, Setting, Split, expand, merged
from anomaly3d.compare.lock import only_one
from anomaly3d.compare.pictures import draw_heatmaps
from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.digest import data_digest
from anomaly3d.data.index import CloudRecord
from anomaly3d.errors import InputError
from anomaly3d.files import write_text
from anomaly3d.metrics.result import METRICS
from anomaly3d.report.comparison import comparison_tables, write_comparison
from anomaly3d.report.costs import cost_tables
from anomaly3d.report.decisions import decision_tables
from anomaly3d.report.published import STATED, Reported, read_published
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
    weights or data have changed since begins anew. Where a run fails the others go on; the tables then lack its row.

    Args:
        methods: rows of the table: name, recipe (`config`) and, where needed, `overrides` of it, `published` values and
            `seeds`.
        output: folder of the results: `comparison.md`, `.csv`, `.tex`, the same by category, `heatmaps.png`, `runs/`,
            `runs.csv` with every number of every run and where it comes from, `costs.md` with time and memory,
            `decisions.md` with F1, precision and recall at the validation's threshold, and `poses/`: each cloud is
            registered to a template once for all runs, and counted in each one's time. The environment variable
            ANOMALY3D_POSES names another folder for it, which several grids may share.
        settings: `unified` (one model for all categories) and `per-category` (one model each); both by default.
        seeds: one run per seed; default [0]. A row may name its own.
        overrides: values for every run by dotted key, e.g. `{data.root: DIR, trainer.max_epochs: 10}`, which the
            command line adds to those of the file. A row's own win over them, but not over a value that the command
            line gives as `--overrides.KEY VALUE`.
        jobs: runs at a time, among which GPUs and cores are shared; default: one per GPU, or one without any.
        split: `test`, or `validation` for numbers from training clouds alone, to choose settings by.
        rank: metric by whose mean the rows are ordered, the best first; by default they stand as given.
        reported: published tables, whose values stand beside those of the methods that have the same names there, e.g.
            `{files: [benchmarks/reported/sedir_per_category.csv], dataset: Real3D-AD}`.
        datasets: more than one data set: the values that lead to each, by its name, e.g. `{demo: {data.root:
            datasets/demo}, scans: {data: configs/data/real3d_ad.yaml, data.root: DIR}}`; a table and a picture of each.

    Raises:
        InputError: published values are given for several data sets, a recipe is missing, or the data can't be read;
            at the end, where runs failed (with the last lines of their logs).
    """
    _check(methods, overrides or {}, settings, seeds, jobs, rank, datasets or {})
    published = read_published(reported) if reported is not None else {}
    for name, method in methods.items():
        published |= {(name, "", metric, STATED): value / 100 for metric, value in method.published.items()}
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
        failed = execute_all(waiting, jobs or max(1, len(gpus())), lock, output / "poses")
        lost = {_row(run) for run, _ in failed}
        runs = [run for run in runs if _row(run) not in lost]
        if not runs:
            raise InputError(_failures(failed, "no row is whole"))
        rows, lines = collect(runs)
        lines += [f"Not in the table, for runs of it failed: {', '.join(filter(None, row))}." for row in sorted(lost)]
        if rank is not None:
            rows = ranked(rows, rank)
        for table in comparison_tables(rows, lines, published):
            console.print(table.console())
        written: list[Path | None] = [*write_comparison(rows, output, lines, published)]
        for name in dict.fromkeys(run.dataset for run in runs):
            picture = output / (f"heatmaps_{name}.png" if name else "heatmaps.png")
            written.append(draw_heatmaps([run for run in runs if run.dataset == name], picture))
        written.append(write_text(output / "runs.csv", rows.to_csv(index=False)))
        measured = " ".join(line for line in lines if "Commit " in line)
        for name, tables in (("costs", cost_tables(rows, measured)), ("decisions", decision_tables(rows, measured))):
            written.append(write_text(output / f"{name}.md", "\n".join(table.markdown() for table in tables)))
        console.print("written:", *(str(path) for path in written if path is not None), sep="\n  ")
    if failed:
        raise InputError(_failures(failed, "the tables are of the other rows"))


def grid(
    methods: dict[str, Method],
    output: Path,
    settings: list[Setting],
    seeds: list[int],
    overrides: dict[str, Any],
    split: Split,
    dataset: str = "",
) -> Iterator[Run]:
    """The runs on one data set; asks every recipe's data module for the categories, and hashes their data."""
    from anomaly3d.lit.cli import DataCLI

    for name, method in methods.items():
        if not method.config.is_file():
            raise InputError(f"{method.config}: no such recipe (method '{name}')")
        if unknown := sorted(set(method.published) - set(METRICS)):
            raise InputError(f"published of '{name}': no metric {', '.join(unknown)}; choose from {', '.join(METRICS)}")
    if not methods:
        raise InputError("methods: none given; name at least one, e.g. --methods.SeDiR.config FILE")
    found: dict[str, dict[str, list[CloudRecord]]] = {}
    for name, method in methods.items():
        probe = Run(name, "unified", 0, (), method.config, merged(overrides, method), output)
        data = DataCLI(probe.arguments).datamodule
        found[name] = records_by_category(data, split)
        if split == "test" and "per-category" in settings:
            _check_tested(data)
    first, known = next(iter(found.items()))
    for name, records in found.items():
        if records != known:
            raise InputError(
                f"methods: the clouds of '{name}' are not those of '{first}'; the rows of a table share their data: "
                "give it in --overrides, or several sets as --datasets"
            )
    digests = {category: data_digest(records) for category, records in known.items()}
    return expand(methods, settings, seeds, digests, overrides, output, split, dataset)


def records_by_category(data: PointCloudDataModule, split: Split) -> dict[str, list[CloudRecord]]:
    """All clouds that runs on this data learn from and are scored on, each once."""
    data.setup("fit")
    records = [*data.records("train"), *data.records("val")]
    if split == "test":
        data.setup("test")
        records += data.records("test")
    # The clouds to validate on may be those that are trained on.
    unique = {record.sample_id: record for record in records}
    return {name: [r for r in unique.values() if r.category == name] for name in data.category_names}


def _check_tested(data: PointCloudDataModule) -> None:
    untested = sorted(set(data.category_names) - {record.category for record in data.records("test")})
    if untested:
        raise InputError(
            f"{data.root}: no test clouds for {', '.join(untested)}, which a detector of its own needs; "
            "leave it out with --overrides.data.categories, or compare in --settings '[unified]'"
        )


def _check(
    methods: dict[str, Method],
    overrides: dict[str, Any],
    settings: list[Setting] | None,
    seeds: list[int] | None,
    jobs: int | None,
    rank: str | None,
    datasets: dict[str, dict[str, Any]],
) -> None:
    """What would be ignored, or fail only behind all runs, fails now."""
    for what, names in (("methods", methods), ("datasets", datasets)):
        for name in names:
            if not name or name != Path(name).name or name == "..":
                raise InputError(f"{what}: '{name}'; a run's folder is named after it, so no slashes")
    if rank is not None and rank not in METRICS:
        raise InputError(f"rank: no metric '{rank}'; choose from {', '.join(METRICS)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: {jobs}; at least one run at a time")
    every = {"seeds": seeds, **{f"seeds of '{name}'": method.seeds for name, method in methods.items()}}
    for what, values in ({"settings": settings} | every).items():
        if values is not None and not 0 < len(set(values)) == len(values):
            raise InputError(f"{what}: {values}; at least one, and each one once")
    for what, values in every.items():
        if values is not None and not all(0 <= seed < 2**32 for seed in values):
            raise InputError(f"{what}: {values}; from 0 to 4294967295")
    for name, values in {"overrides": overrides, **{n: method.overrides for n, method in methods.items()}}.items():
        if "seed_everything" in values:
            raise InputError(f"{name}: seed_everything is the grid's; give --seeds")
        if "data.categories" in values and name != "overrides":
            raise InputError(f"{name}: data.categories are the same for all rows; give --overrides.data.categories")


def _row(run: Run) -> tuple[str, str, str]:
    return run.dataset, run.method, run.setting


def _failures(failed: list[tuple[Run, str]], rest: str) -> str:
    texts = "\n".join(text for _, text in failed)
    many = f"{len(failed)} runs" if len(failed) > 1 else "1 run"
    return f"{many} failed, {rest}; started again, the same command does what is missing:\n{texts}"


def finished(run: Run) -> bool:
    """Whether the run's record is there and belongs to exactly these settings."""
    record = run.folder / "record.json"
    return record.exists() and json.loads(record.read_text())["fingerprint"] == run.fingerprint
