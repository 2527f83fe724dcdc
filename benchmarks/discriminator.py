"""Does the discriminator learn from the anomaly generator? Curves of trainings of Mamba3dAD, and what they end with.

    python benchmarks/discriminator.py RUN [RUN ...] [--clouds 20] [--picture FILE.png]

RUN is the log folder of a training whose `corruption` is `features` or `tokens`. The curves are means over the training
clouds, epoch by epoch, from its `metrics.csv`. The AUROC says how well corrupted slots are told from clean ones in
normal test clouds, which no training has seen, corrupted here with a seed of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly3d.lit.trained import load_trained
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mamba3dad.point_defects import slot_labels
from anomaly3d.types import PatchGroups, PointCloudBatch


@torch.no_grad()
def patches_of(detector: Mamba3dAD, batch: PointCloudBatch) -> PatchGroups:
    """A cloud's patches, as they are scored."""
    _, seen, frames, _ = detector.place_predicted(batch)
    return detector.sampler(seen, frames)


@torch.no_grad()
def told_apart(detector: Mamba3dAD, groups: PatchGroups) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Labels and logits of the slots of one corrupted cloud; only the generator is in training mode."""
    tokens = detector.standardised(detector.tokens(groups))
    defective = torch.zeros_like(tokens[..., 0])
    if detector.corruption == "tokens":
        detector.token_noise.train()
        tokens, defective = detector.token_noise(tokens)
    ordered = detector.sort(tokens, groups.centres)
    features, labels = detector.features(ordered), slot_labels(defective, ordered.assignment)
    if detector.corruption == "features":
        detector.generator.train()
        features, labels = detector.generator(features)
    return labels[0].cpu(), detector.discriminator(features, ordered.coordinates)[0].float().cpu()


def main(arguments: list[str] | None = None) -> None:
    """Print a table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--clouds", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args(arguments)
    print("| run | epochs | BCE, first | last | AUROC, untrained | trained | positives | p | gamma | its range |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|:--|:--|")
    curves: dict[str, pd.DataFrame] = {}
    for run in args.runs:
        trained = load_trained(run)
        if not isinstance(trained.detector, Mamba3dAD) or trained.detector.corruption not in ("features", "tokens"):
            parser.error(f"{run}: no training of Mamba3dAD with corruption features or tokens")
        torch.manual_seed(0)
        untrained = Mamba3dAD(**trained.config["model"]["detector"]["init_args"]).eval()
        untrained.standardiser.load_state_dict(trained.detector.standardiser.state_dict())
        trained.data.setup("test")
        normal = [batch for batch in trained.data.test_dataloader() if batch.label.item() == 0][: args.clouds]
        # Where clouds are registered, only what was trained has their templates.
        patches = [patches_of(trained.detector, batch.to(trained.device)) for batch in normal]
        aurocs, positives = [], 0.0
        for detector in (untrained.to(trained.device), trained.detector):
            torch.manual_seed(1)
            labels, logits = map(torch.cat, zip(*(told_apart(detector, groups) for groups in patches), strict=True))
            aurocs.append(roc_auc_score(labels > 0.5, logits))
            positives = labels.mean().item()
        table = pd.read_csv(next(run.rglob("metrics.csv"))).dropna(subset="train/bce").set_index("epoch")
        curves[f"{run.parent.name}/{run.name}"] = table
        bce, gamma, low_high = table["train/bce"], table["train/gamma"], trained.detector.generator.gamma_range
        print(
            f"| {trained.detector.corruption} | {trained.epochs} | {bce.iloc[0]:.3f} | {bce.iloc[-1]:.3f} "
            f"| {100 * aurocs[0]:.1f} | {100 * aurocs[1]:.1f} | {positives:.3f} "
            f"| {trained.detector.generator.probability} | {gamma.min():.2f} to {gamma.max():.2f} | {low_high} |"
        )
    if args.picture:
        draw(curves, args.picture)


def draw(curves: dict[str, pd.DataFrame], path: Path) -> None:
    """One panel each for the BCE, both losses of the order, and gamma."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = {"bce": "binary cross-entropy", "entropy": "L_ent (nats)", "locality": "L_loc", "gamma": "gamma"}
    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (column, name) in zip(figure.subplots(1, len(names)), names.items(), strict=True):
        for run, table in curves.items():
            axes.plot(table.index, table[f"train/{column}"], label=run)
        axes.set(title=name, xlabel="epoch")
        axes.set_ylim(bottom=0)
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
