"""What settings of ours that banks have under `strict` are worth, on validation clouds of training clouds held out.

    python benchmarks/bank_settings.py --data.demo datasets/demo

One detector per category learns from all of its training clouds but the last, by sample id; validation clouds are made
from that one, so that nothing in them is in the memory. Test clouds are never opened. One setting is varied at a time
from its default: what features are (edge of the voxel filter, key points in a group of Simple3D, size of the
coreset), then over how many points a score is averaged, and the share of a cloud's points that makes the object's
score. A cloud is described once for all averages and shares. Prints a Markdown table, means over categories in percent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from jaxtyping import Float
from jsonargparse import auto_cli
from torch import Tensor

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.btf import BTF
from anomaly3d.models.components.one_by_one import order_of
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.scoring import Propagate
from anomaly3d.models.patchcore import PatchCore
from anomaly3d.models.simple3d import Simple3D
from anomaly3d.models.template_distance import TemplateDistance
from anomaly3d.types import AnomalyPrediction, PointCloudBatch
from classical import SHOWN, data_kind, fitted, header, is_of, only, registered_once, row

patchcore = partial(PatchCore, coreset_size=2000, hypotheses=20_000)  # the laptop's recipes
EDGES = (0.02, 0.03, 0.045, 0.07)
FPFH_RAW = {"feature": "fpfh_raw"}
VARIED: dict[str, dict[str, Callable[..., BankDetector]]] = {
    "Template distance": {
        f"voxel {edge:g}": partial(TemplateDistance, hypotheses=20_000, voxel_size=edge)
        for edge in (0, 0.015, 0.03, 0.045)
    },
    "BTF(Raw)": {f"voxel {edge:g}": partial(BTF, feature="raw", voxel_size=edge) for edge in EDGES},
    "BTF(FPFH)": {f"voxel {edge:g}": partial(BTF, voxel_size=edge) for edge in EDGES},
    "PatchCore(FPFH)": {
        **{f"voxel {edge:g}": partial(patchcore, voxel_size=edge) for edge in EDGES},
        "coreset 10000": partial(patchcore, coreset_size=10_000),
    },
    "PatchCore(FPFH+Raw)": {f"voxel {edge:g}": partial(patchcore, **FPFH_RAW, voxel_size=edge) for edge in EDGES},
    "Simple3D": {
        **{f"voxel {edge:g}": partial(Simple3D, coreset_size=2000, voxel_size=edge) for edge in (0.02, 0.03, 0.045)},
        **{f"group of {k}": partial(Simple3D, coreset_size=2000, group_size=k) for k in (1, 32)},
        "coreset 10000": partial(Simple3D, coreset_size=10_000),
    },
}
"""Detectors by method and by what is varied; the others have their default under `strict`."""


class Carried(NamedTuple):
    """What a detector had its scoring carry: scores, where they are, and the points of the cloud."""

    scores: Float[Tensor, " M"]
    at: Float[Tensor, "M 3"]
    xyz: Float[Tensor, "N 3"]


class Recorder(PointScoring):
    """Keeps what it is given to carry."""

    last: Carried

    def points(
        self,
        scores: Float[Tensor, " M"],
        at: Float[Tensor, "M 3"],
        xyz: Float[Tensor, "N 3"],
        propagate: Propagate = "inverse_distance",
    ) -> Float[Tensor, " N"]:
        """As `PointScoring`, remembered."""
        object.__setattr__(self, "last", Carried(scores, at, xyz))
        return super().points(scores, at, xyz, propagate)


def bank_settings(
    data: dict[str, Path],
    methods: list[str] | None = None,
    averages: list[int] | None = None,
    shares: list[float] | None = None,
    normal: int = 4,
    defective: int = 8,
    seed: int = 0,
    categories: list[str] | None = None,
    neighbours: int | None = None,
) -> None:
    """Print the table.

    Args:
        data: folders by name, each in one of the two public layouts, with two training clouds of each category or more.
        methods: by name; default all.
        averages: key points over which a score is averaged, itself included; default [1, 16, 64, 256].
        shares: of a cloud's points whose mean is its score, 0 for the largest; default [0, 0.001, 0.01, 0.05]. All
            averages are scored with the default share of 0.01, all shares with an average of 16.
        normal: normal clouds per category.
        defective: defective clouds per category.
        seed: of the validation clouds.
        categories: default all.
        neighbours: most points of the FPFH of BTF and PatchCore; default theirs.
    """
    ways = [(k, 0.01) for k in averages or [1, 16, 64, 256]]
    ways += [(16, share) for share in shares or [0.0, 0.001, 0.01, 0.05]]
    header("data", "method", "features", "average", "share", *SHOWN)
    for label, root in data.items():
        with held_out(root, categories) as (train, views), registered_once():
            views.val_normal, views.val_defective, views.val_seed = normal, defective, seed
            train.setup("fit")
            views.setup("fit")
            learned, scored = list(train.train_dataloader()), list(views.val_dataloader())
            for method in methods or VARIED:
                for features, make in VARIED[method].items():
                    if neighbours is not None and method in ("BTF(FPFH)", "PatchCore(FPFH)", "PatchCore(FPFH+Raw)"):
                        make = partial(make, feature_neighbours=neighbours)
                    evaluators = {way: Evaluator(views.category_names, exact=True, replicates=0) for way in ways}
                    for category, name in enumerate(views.category_names):
                        clouds = [only(batch) for batch in learned if is_of(batch, category)]
                        detector = fitted(make(), (name,), clouds)
                        for view in scored:
                            if is_of(view, category):
                                evaluate(detector, view, evaluators)
                    for (average, share), evaluator in evaluators.items():
                        mean = evaluator.compute().mean
                        cells = (f"{100 * mean[metric]:.1f}" for metric in SHOWN)
                        row(label, method, features, str(average), f"{share:g}", *cells)


def evaluate(detector: BankDetector, view: PointCloudBatch, evaluators: dict[tuple[int, float], Evaluator]) -> None:
    """Score one cloud in every way: (points of an average, share of the object's score)."""
    recorder = Recorder()
    setattr(detector, "scoring", recorder)  # noqa: B010 - every class that is varied has one, their base has none
    detector.score(view)
    order = order_of(view.xyz, detector.protocol)
    carried: dict[int, Tensor] = {}
    for (average, share), evaluator in evaluators.items():
        scoring = PointScoring(average, share)
        if average not in carried:
            found = scoring.points(*recorder.last).to(view.xyz)
            carried[average] = torch.empty_like(found).index_copy_(0, order, found)
        points = carried[average]
        evaluator.update(AnomalyPrediction(points, scoring.object(points)[None]), view)


@contextmanager
def held_out(root: Path, categories: list[str] | None) -> Iterator[tuple[PointCloudDataModule, PointCloudDataModule]]:
    """Data modules of a folder: one trains on all training clouds of a category but the last, the other on the last."""
    kind = data_kind(root)
    every = kind(root, categories=categories or "all", val_fraction=0)
    every.setup("fit")
    parts: tuple[list[str], list[str]] = ([], [])
    for category in every.category_names:
        clouds = sorted(
            (record for record in every.records("train") if record.category == category), key=lambda r: r.sample_id
        )
        for number, record in enumerate(clouds):
            entry = {"filename": str(record.path.resolve()), "label": 0, "clsname": category}
            parts[number == len(clouds) - 1].append(json.dumps(entry))
    with TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("others.jsonl", "last.jsonl")]
        for file, lines in zip(files, parts, strict=True):
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        others, last = (
            kind(root, categories=categories or "all", train_manifest=file, val_fraction=0) for file in files
        )
        yield others, last


if __name__ == "__main__":
    auto_cli(bank_settings, as_positional=False)
