"""What the settings of hand-made features and of banks of several categories are worth, on validation clouds.

    python benchmarks/classical.py features --data.demo datasets/demo
    python benchmarks/classical.py recognition --data.demo datasets/demo

`features` scores BTF(FPFH) and PatchCore(FPFH) over the points of a histogram's neighbourhood, and PatchCore(FPFH+Raw)
over the weight of the coordinates, one detector per category; a cloud is registered once for all of them.
`recognition` fits one detector of all categories and lets it choose the bank by its own rule, the smallest median
distance, and by the smallest in units of what a normal cloud of the category has. Validation clouds are made from the
training clouds; test clouds are never opened. Both print a Markdown table, means over categories in percent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from unittest import mock

import torch
from jaxtyping import Float
from jsonargparse import auto_cli
from torch import Tensor

from anomaly3d.data.anomaly_shapenet import AnomalyShapeNet
from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.real3d_ad import Real3DAD
from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.btf import BTF
from anomaly3d.models.components.memory import nearest, pack, unpack
from anomaly3d.models.components.one_by_one import order_of
from anomaly3d.models.components.pose_store import POSES
from anomaly3d.models.m3dm import M3DM
from anomaly3d.models.patchcore import PatchCore
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.simple3d import Simple3D
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

Fitted = TypeVar("Fitted", bound=BankDetector)
Recognising = BTF | Simple3D | PatchCorePointMAE
SHOWN = ("o_auroc", "p_auroc", "p_aupr")
# At the sizes of the laptop's recipes.
RECOGNISING: dict[str, Callable[[], Recognising]] = {
    **{f"BTF(FPFH) {k} neighbours": partial(BTF, feature_neighbours=k) for k in (10, 20, 30, 100)},
    "BTF(Raw)": partial(BTF, feature="raw"),
    "Simple3D": partial(Simple3D, coreset_size=2000),
    "PatchCore(PointMAE)": partial(PatchCorePointMAE, num_groups=256, register=False, pad=True),
    "M3DM(PointMAE)": partial(M3DM, num_groups=512, coreset_share=0.5, pad=True),
}


def features(
    data: dict[str, Path],
    neighbours: list[int] | None = None,
    weights: list[float] | None = None,
    raw_neighbours: list[int] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    normal: int = 6,
    defective: int = 12,
    coreset_size: int = 2000,
    categories: list[str] | None = None,
) -> None:
    """Neighbours of FPFH and weight of the coordinates.

    Args:
        data: folders by name, each in one of the two public layouts.
        neighbours: most points of a histogram's neighbourhood; default [10, 20, 30, 100].
        weights: of coordinates beside FPFH, per radius; default [15, 50, 165].
        raw_neighbours: those beside these weights; default [100].
        methods: of the three, by name; default all.
        seeds: of the validation clouds; default [0].
        normal: normal clouds per category.
        defective: defective clouds per category.
        coreset_size: of PatchCore.
        categories: default all.
    """
    patchcore = partial(PatchCore, coreset_size=coreset_size, hypotheses=20_000)
    ks, factors = neighbours or [10, 20, 30, 100], weights or [15.0, 50.0, 165.0]
    varied: dict[str, dict[str, Callable[[], BankDetector]]] = {
        "BTF(FPFH)": {f"{k} neighbours": partial(BTF, feature_neighbours=k) for k in ks},
        "PatchCore(FPFH)": {f"{k} neighbours": partial(patchcore, feature_neighbours=k) for k in ks},
        "PatchCore(FPFH+Raw)": {
            f"weight {w:g}, {k} neighbours": partial(patchcore, feature="fpfh_raw", raw_weight=w, feature_neighbours=k)
            for w in factors
            for k in raw_neighbours or [100]
        },
    }
    made = {f"{name}, {how}": make for name in methods or varied for how, make in varied[name].items()}
    header("setting", "data", "seed", *SHOWN)
    for label, root in data.items():
        for seed in seeds or [0]:
            module = data_module(root, normal, defective, seed, categories)
            train, views = batches(module)
            evaluators = {name: Evaluator(module.category_names, exact=True, replicates=0) for name in made}
            with registered_once():
                for category, of_category in enumerate(module.category_names):
                    for name, make in made.items():
                        detector = fitted(make(), (of_category,), [only(b) for b in train if is_of(b, category)])
                        for view in views:
                            if is_of(view, category):
                                scored = detector.score(view)
                                evaluators[name].update(
                                    AnomalyPrediction(scored.point_scores, scored.object_scores), view
                                )
            for name, evaluator in evaluators.items():
                mean = evaluator.compute().mean
                row(name, label, str(seed), *(f"{100 * mean[metric]:.1f}" for metric in SHOWN))


def recognition(
    data: dict[str, Path],
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    normal: int = 6,
    defective: int = 12,
    categories: list[str] | None = None,
) -> None:
    """Which bank a cloud of an unknown category is given to.

    Args:
        data: folders by name, each in one of the two public layouts.
        methods: by name; default all that choose by their banks.
        seeds: of the validation clouds; default [0].
        normal: normal clouds per category.
        defective: defective clouds per category.
        categories: default all.
    """
    header("method", "data", "seed", "rule", "category accuracy", *SHOWN, "expected")
    for label, root in data.items():
        for seed in seeds or [0]:
            module = data_module(root, normal, defective, seed, categories)
            train, views = batches(module)
            for name in methods or RECOGNISING:
                detector = fitted(RECOGNISING[name](), module.category_names, train)
                expected = _expected(detector, train)
                evaluators = {
                    rule: Evaluator(module.category_names, exact=True, replicates=0)
                    for rule in ("median", "median in units of a normal cloud's")
                }
                for view in views:
                    scored = detector.score(view)
                    assert scored.category_logits is not None
                    chosen = scored.category_logits.argmax()
                    for evaluator, logits in zip(
                        evaluators.values(), (scored.category_logits, scored.category_logits / expected), strict=True
                    ):
                        if logits.argmax() != chosen:
                            scored = _with_bank(detector, int(logits.argmax()), view)
                        evaluator.update(AnomalyPrediction(scored.point_scores, scored.object_scores, logits), view)
                shown = ", ".join(f"{unit:.3g}" for unit in expected.tolist())
                for rule, evaluator in evaluators.items():
                    mean = evaluator.compute().mean
                    cells = (f"{100 * mean[metric]:.1f}" for metric in ("category_accuracy", *SHOWN))
                    row(name, label, str(seed), rule, *cells, shown)


def _expected(detector: Recognising, clouds: list[PointCloudBatch]) -> Float[Tensor, " C"]:
    """Per category, the median over its training clouds of a cloud's median distance to the rows of the others."""
    banks, medians = unpack(detector.bank, detector.offsets), [[] for _ in detector.categories]
    for cloud in clouds:
        features = detector.describe(cloud.xyz[order_of(cloud.xyz, detector.protocol)], cloud.sample_id[0])
        bank = banks[_category(cloud)]
        others = bank[nearest(bank, features)[0][:, 0] > 0]
        medians[_category(cloud)].append(nearest(features[:: max(1, len(features) // 2000)], others)[0].median())
    return torch.stack([torch.stack(of_category).median() for of_category in medians])


def _with_bank(detector: Recognising, category: int, view: PointCloudBatch) -> AnomalyPrediction:
    """Scores by the bank of one category."""
    bank, offsets = detector.bank, detector.offsets
    detector.bank, detector.offsets = pack([unpack(bank, offsets)[category]])
    scored = detector.score(view)
    detector.bank, detector.offsets = bank, offsets
    return scored


def fitted(detector: Fitted, categories: tuple[str, ...], clouds: list[PointCloudBatch]) -> Fitted:
    """The detector with the memory of these clouds."""
    detector.configure(categories)
    for cloud in clouds:
        detector.observe(cloud)
    detector.finish_pass()
    return detector.eval()


def data_kind(root: Path) -> type[Real3DAD] | type[AnomalyShapeNet]:
    """By its folders; the first makes validation clouds that are views from one side."""
    return Real3DAD if any(root.rglob("gt")) else AnomalyShapeNet


def data_module(
    root: Path, normal: int, defective: int, seed: int, categories: list[str] | None
) -> PointCloudDataModule:
    """Training and validation clouds of a folder, ready."""
    kind = data_kind(root)
    module = kind(root, val_normal=normal, val_defective=defective, val_seed=seed, categories=categories or "all")
    module.setup("fit")
    return module


def batches(module: PointCloudDataModule) -> tuple[list[PointCloudBatch], list[PointCloudBatch]]:
    """Training and validation clouds, one a batch."""
    return list(module.train_dataloader()), list(module.val_dataloader())


def is_of(batch: PointCloudBatch, category: int) -> bool:
    """Whether the one cloud of a batch is of a category."""
    return _category(batch) == category


def _category(batch: PointCloudBatch) -> int:
    assert batch.category is not None
    return int(batch.category)


def only(batch: PointCloudBatch) -> PointCloudBatch:
    """As the only category of a detector."""
    return PointCloudBatch.pack(list(batch.clouds()), batch.sample_id, [0])


@contextmanager
def registered_once() -> Iterator[None]:
    """Within it a cloud that was registered to a template is not registered again."""
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, {POSES: os.environ.get(POSES, folder)}):
        yield


def header(*names: str) -> None:
    """Print the first two lines of a table."""
    print("| " + " | ".join(names) + " |")
    print("|" + " :-- |" * len(names), flush=True)


def row(*cells: str) -> None:
    """Print a line of it, at once."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    auto_cli([features, recognition], as_positional=False)
