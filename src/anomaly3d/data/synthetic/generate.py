"""The synthetic data set on disk, in the layout of Anomaly-ShapeNet v2."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from anomaly3d.data.pcd import write_pcd
from anomaly3d.data.synthetic.cloud import CloudPlan, ScanSettings, child_seed, make_cloud
from anomaly3d.data.synthetic.defects import Kind
from anomaly3d.data.synthetic.scan import Pose, View
from anomaly3d.data.synthetic.shapes import CATEGORIES
from anomaly3d.errors import InputError, check_choice, check_range
from anomaly3d.files import write_text

VERSION = 1
"""Of the generator: raised whenever the same arguments give other clouds."""

PROVENANCE = "provenance.json"
_ARGUMENTS = "arguments.json"
_RECORDS = ".records"
_LEAST_POINTS = 1000


def generate(
    root: str | os.PathLike[str],
    categories: str | list[str] = "all",
    seed: int = 0,
    templates: int = 4,
    normals: int = 10,
    defects_per_kind: int = 2,
    kinds: Literal["all"] | Kind | list[Kind] = "all",
    points: int | tuple[int, int] = (8_000, 16_000),
    view: View = "full",
    noise: float = 0.001,
    pose: Pose = "small",
    workers: int = 1,
) -> Path:
    """Make a data set of industrial parts with defects, in the layout of Anomaly-ShapeNet v2.

    Every cloud is another instance of its part, its dimensions drawn within tolerances. The same arguments give the
    same bytes, whatever `workers`; a cloud depends on `seed`, its own name and the scan settings, not on what else is
    made. The work goes to `<root>.partial` first; started again after an interruption it goes on from there.

    Args:
        root: Folder to make. It must be missing, empty, or the finished result of the same arguments.
        categories: Parts to make, or `all` of them: bearing, bracket, clamp, connector, conrod, crankshaft, elbow,
            flange, gear, heatsink, hexbolt, hexnut, hinge, housing, pulley, shaft, spring, tee, valve, wrench.
        seed: Seed of everything random.
        templates: Normal clouds for training, per category.
        normals: Normal clouds for testing, per category.
        defects_per_kind: Defective clouds for testing, per category and kind.
        kinds: Kinds of defect, or `all`: bulge, concavity, hole, broken, bending, crak (the public set's spelling).
        points: Points per cloud, or least and greatest number to draw from.
        view: `full` clouds, or test clouds from a `single` side with real occlusion (templates stay complete).
        noise: Standard deviation of the sensor noise as a fraction of the part's diagonal; each cloud's is 0.5-1.5
            times this.
        pose: `aligned`, `small` (at most 5 degrees and 1 % of the diagonal), or `arbitrary`.
        workers: Processes to use.

    Returns:
        `root`.

    Raises:
        InputError: for arguments out of range, or a folder that holds something else.
    """
    root = Path(root)
    settings = ScanSettings(points if isinstance(points, int) else (points[0], points[1]), view, noise, pose)
    arguments = {
        "generator": "anomaly3d.data.synthetic",
        "version": VERSION,
        "seed": seed,
        "categories": _choice("categories", categories, tuple(CATEGORIES)),
        "kinds": _choice("kinds", kinds, get_args(Kind)),
        "templates": templates,
        "normals": normals,
        "defects_per_kind": defects_per_kind,
        "points": list(settings.points) if isinstance(settings.points, tuple) else settings.points,
        "view": view,
        "noise": noise,
        "pose": pose,
    }
    _check(arguments, settings, workers)
    if _finished(root, arguments):
        return root
    partial_root = root.with_name(f"{root.name}.partial")
    _open_partial(partial_root, arguments)
    plans = list(_plans(arguments))
    job = partial(_write_cloud, partial_root, settings, seed)
    records = _with_progress(_run(job, plans, workers), len(plans), root.name)
    write_text(partial_root / PROVENANCE, json.dumps({**arguments, "clouds": records}, indent=1))
    (partial_root / _ARGUMENTS).unlink()
    shutil.rmtree(partial_root / _RECORDS)
    if root.exists():
        root.rmdir()
    partial_root.rename(root)
    return root


def _choice(setting: str, wanted: str | Sequence[str], known: tuple[str, ...]) -> list[str]:
    if wanted == "all":
        return list(known)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f"{setting}: {', '.join(unknown) or 'nothing'} is not among {', '.join(known)} (or all).")
    return list(dict.fromkeys(names))


def _check(arguments: dict[str, Any], settings: ScanSettings, workers: int) -> None:
    check_range(0, inf, **{name: arguments[name] for name in ("normals", "defects_per_kind", "seed")})
    check_range(1, inf, templates=arguments["templates"], workers=workers)
    low, high = (settings.points, settings.points) if isinstance(settings.points, int) else settings.points
    if not _LEAST_POINTS <= low <= high:
        raise InputError(f"points: {settings.points}. Give a number, or a range, of at least {_LEAST_POINTS} points.")
    check_range(0, 0.05, noise=settings.noise)  # of the diagonal; sensors reach about 0.001
    check_choice(get_args(View), view=settings.view)
    check_choice(get_args(Pose), pose=settings.pose)


def _finished(root: Path, arguments: dict[str, Any]) -> bool:
    """Whether `root` is already the result; refuses a folder that holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        made = json.loads((root / PROVENANCE).read_text())
    except (OSError, ValueError):
        raise InputError(f"{root}: holds something else. Give `root` a folder that is new or empty.") from None
    made.pop("clouds", None)
    if made != arguments:
        other = sorted(name for name in {*made, *arguments} if made.get(name) != arguments.get(name))
        raise InputError(f"{root}: made with other arguments ({', '.join(other)}). Delete it or choose another `root`.")
    return True


def _open_partial(folder: Path, arguments: dict[str, Any]) -> None:
    """Make the working folder, or check that the one an interrupted run left is of the same arguments."""
    content = json.dumps(arguments, indent=1)
    if folder.exists() and any(folder.iterdir()):
        before = folder / _ARGUMENTS
        if not before.exists() or before.read_text() != content:
            raise InputError(f"{folder}: left by an interrupted run with other arguments. Delete it and start again.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _ARGUMENTS, content)
    (folder / _RECORDS).mkdir(exist_ok=True)
    for category in arguments["categories"]:
        for name in ("train", "test", "GT"):
            (folder / category / name).mkdir(parents=True, exist_ok=True)


def _plans(arguments: dict[str, Any]) -> Iterator[CloudPlan]:
    for category in arguments["categories"]:
        for i in range(arguments["templates"]):
            yield CloudPlan(category, "train", f"template{i}", None)
        for i in range(arguments["normals"]):
            yield CloudPlan(category, "test", f"positive{i}", None)
        for kind in arguments["kinds"]:
            for i in range(arguments["defects_per_kind"]):
                yield CloudPlan(category, "test", f"{kind}{i}", kind)


def _run(job: Callable[[CloudPlan], dict[str, Any]], plans: list[CloudPlan], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(job, plans)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(job, plans)


def _with_progress(records: Iterable[dict[str, Any]], total: int, name: str) -> list[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return list(track(records, f"Making {name}", total, console=console, disable=not console.is_terminal))


def _write_cloud(root: Path, settings: ScanSettings, seed: int, plan: CloudPlan) -> dict[str, Any]:
    """Make one cloud and its files; its record, written last, says that they are complete."""
    record_path = root / _RECORDS / f"{plan.stem}.json"
    if record_path.exists():
        return json.loads(record_path.read_text())
    cloud = make_cloud(plan, settings, seed)
    write_pcd(root / plan.category / plan.split / f"{plan.stem}.pcd", cloud.xyz)
    if plan.kind is not None:
        # The public set's truth has its rows in another order than the cloud; so has ours.
        order = np.random.default_rng(child_seed(seed, plan.stem, "truth")).permutation(len(cloud.xyz))
        rows = np.column_stack([cloud.xyz, cloud.mask])[order].ravel().tolist()
        text = "%.6f,%.6f,%.6f,%d\n" * len(cloud.xyz) % tuple(rows)
        (root / plan.category / "GT" / f"{plan.stem}.txt").write_text(text)
    write_text(record_path, json.dumps(cloud.record))
    return cloud.record
