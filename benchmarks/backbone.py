"""What a backbone's tokens are worth: linear probes, and a memory bank of tokens.

    python benchmarks/backbone.py probe --shapes ../shared/data
    python benchmarks/backbone.py bank --data.demo datasets/demo

`probe` trains a logistic regression on global features of whole clouds (mean and maximum of the last block's tokens):
on generated shape families that no pre-training saw, and on labelled shapes (psb30_train.npz, psb30_test.npz) where a
folder of them is given. `bank` keeps the tokens of the training clouds of a category and scores a patch of a
test cloud by the distance to the nearest of them: no training, so that nothing but the tokens decides. Both
print a Markdown table with a row per weights; random weights are drawn anew for every seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from torch import Tensor

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.procedural.probe import labelled_clouds
from anomaly3d.data.real3d_ad import Real3DAD
from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.models.backbones.point_mae import FrozenPointMAE
from anomaly3d.models.backbones.weights import frozen_point_mae, weights_hash
from anomaly3d.models.components.patches import PatchSampler
from anomaly3d.models.components.placement import make_placement
from anomaly3d.models.components.scoring import TokenScoring
from anomaly3d.models.components.standardise import TokenStandardiser
from anomaly3d.types import PatchGroups, PointCloudBatch
from classical import data_kind, header, row


def probe(
    weights: list[str] | None = None,
    seeds: list[int] | None = None,
    shapes: Path | None = None,
    groups: int = 64,
    group_size: int = 64,
    families: int = 40,
    per_family: int = 32,
    blocks: list[int] | None = None,
) -> None:
    """Linear-probe accuracy on held-out shapes.

    Args:
        weights: `small`, `random` or files; default [random, small].
        seeds: of random weights and of the generated clouds; default [0, 1, 2].
        shapes: folder with psb30_train.npz and psb30_test.npz.
        groups: patches per cloud.
        group_size: points per patch.
        families: generated shape families.
        per_family: clouds of each, half of them to train on.
        blocks: transformer blocks whose tokens are joined; default the last.
    """
    sets = {}
    for seed in seeds or [0, 1, 2]:
        clouds, labels = labelled_clouds(families, per_family, 2048, seed=10_000 + seed)
        odd = np.arange(len(labels)) % 2 == 1
        sets[f"generated, {families} families", seed] = (clouds[~odd], labels[~odd], clouds[odd], labels[odd])
        if shapes is not None:
            sets["psb30", seed] = (*_labelled(shapes / "psb30_train.npz"), *_labelled(shapes / "psb30_test.npz"))
    which = "the last block" if blocks is None else f"blocks {', '.join(map(str, blocks))}"
    print(f"Linear probe of {which}, {groups} patches of {group_size}: accuracy in percent per seed\n")
    header("weights", "sha256", "clouds", "accuracy", "mean")
    sampler = PatchSampler(groups, group_size)
    names = list(dict.fromkeys(name for name, _ in sets))
    for name in weights or ["random", "small"]:
        for data in names:
            results, model = [], None
            for (which, seed), (xa, ya, xb, yb) in sets.items():
                if which != data:
                    continue
                model = frozen_point_mae(weights=name, seed=seed)
                a, b = (_features(model, sampler, clouds, blocks) for clouds in (xa, xb))
                results.append(_logistic(a, ya, b, yb))
            assert model is not None
            _row(name, model, data, results)


def bank(
    data: dict[str, Path],
    weights: list[str] | None = None,
    seeds: list[int] | None = None,
    groups: int = 256,
    group_size: int = 128,
    block: int | list[int] | None = None,
    standardise: bool = True,
    pseudo_defects: bool = False,
    register: bool = False,
) -> None:
    """O- and P-AUROC of a memory bank, per category, macro mean.

    Args:
        data: folders by name, each in one of the two public layouts.
        weights: `small`, `random` or files; default [random, small].
        seeds: of random weights; default [0, 1, 2]. Trained weights have no randomness left: one run.
        groups: patches per cloud.
        group_size: points per patch.
        block: transformer block of the tokens, 0 for the tokens before the transformer, or several to compare; default
            the last.
        standardise: tokens in units of their variation over the training clouds, as the detectors take them.
        pseudo_defects: score the validation clouds instead, made from the training clouds.
        register: bring clouds to the template of the category that fits best, and complete them by it, as the detectors
            do with scans from one side; needs open3d.
    """
    blocks = block if isinstance(block, list) else [block]
    which = ", ".join("last" if one is None else str(one) for one in blocks)
    print(f"Memory bank, {groups} patches of {group_size}, block {which}: AUROC in percent per seed\n")
    header("weights", "sha256", "data", "O-AUROC", "mean", "P-AUROC", "mean")
    rows: dict[str, list[tuple]] = {}
    for label, root in data.items():
        patches = _Patches.of(_module(root), PatchSampler(groups, group_size, pad=True), pseudo_defects, register)
        for name in weights or ["random", "small"]:
            models = [frozen_point_mae(weights=name, seed=s) for s in (seeds or [0, 1, 2] if name == "random" else [0])]
            for one in blocks:
                found = [_bank(model, patches, one, standardise) for model in models]
                called = name if len(blocks) == 1 else f"{name}, block {one}"
                rows.setdefault(called, []).append((models[0], label, *zip(*found, strict=True)))
    for name, results in rows.items():
        for found in results:
            _row(name, *found)


class _Patches(NamedTuple):
    """All that is cut of a data set before any weights see it."""

    categories: tuple[str, ...]
    train: list[tuple[PatchGroups, int]]
    test: list[tuple[PatchGroups, int, PointCloudBatch, PointCloudBatch]]  # category, where it is placed, with truth

    @staticmethod
    def of(data: PointCloudDataModule, sampler: PatchSampler, pseudo_defects: bool, register: bool) -> _Patches:
        data.setup("fit" if pseudo_defects else None)
        placement = make_placement(register, register, "strict", resolution=0.025)
        if placement is not None:
            for batch in data.train_dataloader():
                placement.observe(batch)
            placement.finish_pass(data.category_names)
        train, test = [], []
        for batch in data.train_dataloader():
            category, seen, frames = int(batch.category), batch, None
            if placement is not None:
                _, seen, frames, _ = placement.known(batch.xyz, batch.sample_id[0], category)
            train.append((sampler(seen, frames), category))
        loader = data.val_dataloader() if pseudo_defects else data.test_dataloader()
        for batch in track(loader, description=data.root.name, console=Console(stderr=True)):
            category, clouds, seen, frames = int(batch.category), batch, batch, None
            if placement is not None:
                clouds, seen, frames, logits = placement.predicted(batch)
                assert logits is not None
                category = int(logits.argmax())
            test.append((sampler(seen, frames), category, clouds, batch))
        return _Patches(data.category_names, train, test)


def _bank(model: FrozenPointMAE, data: _Patches, block: int | None, standardise: bool) -> tuple[float, float]:
    memory: dict[int, list[Tensor]] = {}
    for patches, category in data.train:
        memory.setdefault(category, []).append(_tokens(model, patches, block)[0])
    standardiser = TokenStandardiser(model.width)
    if standardise:
        standardiser.observe(torch.cat([cloud[None] for tokens in memory.values() for cloud in tokens]))
    banks = {category: standardiser(torch.cat(tokens)) for category, tokens in memory.items()}
    scoring, evaluator = TokenScoring(), Evaluator(data.categories, exact=True, replicates=0)
    for patches, category, clouds, batch in data.test:
        (tokens,) = _tokens(model, patches, block)
        errors = torch.cdist(standardiser(tokens), banks[category]).amin(1)[None]
        evaluator.update(scoring(errors, patches, clouds), batch)
    mean = evaluator.compute().mean
    return mean["o_auroc"], mean["p_auroc"]


def _tokens(model: FrozenPointMAE, patches: PatchGroups, block: int | None) -> Float[Tensor, "B G D"]:
    if block == 0:
        return model.embed(patches.points / model.unit(patches.points))
    (tokens,) = model(patches.points, patches.centres, None if block is None else [block])
    return tokens


def _module(root: Path) -> PointCloudDataModule:
    kind = data_kind(root)
    return kind(root, val_normal=8, val_defective=16, val_view="single" if kind is Real3DAD else "full")


def _features(
    model: FrozenPointMAE, sampler: PatchSampler, clouds: Float[Tensor, "n N 3"], blocks: list[int] | None
) -> np.ndarray:
    rows = []
    for part in clouds.split(16):
        patches = sampler(PointCloudBatch.pack(list(part), [str(i) for i in range(len(part))]))
        tokens = torch.cat(model(patches.points, patches.centres, blocks), dim=-1)
        rows.append(torch.cat([tokens.mean(1), tokens.amax(1)], dim=1))
    return torch.cat(rows).numpy()


def _logistic(xa: np.ndarray, ya: np.ndarray, xb: np.ndarray, yb: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lbfgs stopped at its limit
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(xa, ya)
    return float(fitted.score(xb, yb))


def _labelled(file: Path) -> tuple[Tensor, np.ndarray]:
    content = np.load(file)
    return torch.from_numpy(content["points"].astype(np.float32) / 32767), content["label"]


def _row(name: str, model: FrozenPointMAE, data: str, *results: list[float] | tuple[float, ...]) -> None:
    row(name, weights_hash(model)[:12], data, *_percent(results))


def _percent(results: tuple[list[float] | tuple[float, ...], ...]) -> Iterator[str]:
    for values in results:
        yield ", ".join(f"{100 * value:.1f}" for value in values)
        yield f"{100 * float(np.mean(values)):.1f}"


if __name__ == "__main__":
    auto_cli([probe, bank], as_positional=False)
