"""Does the sorter sort? Orders of a trained Mamba3dAD beside orders that are not learned.

    python benchmarks/sorting.py RUN [--clouds 20]

RUN is the log folder of a training with `order: gsas`. Measured on normal test clouds, which no training has seen. The
untrained sorter is the same recipe's before its first step, with the same frozen tokens.

- step: mean distance in space of tokens that follow one another, the mean distance of any two tokens being 1.
- near: of the tokens of the eight patches around a token, the share that stands within a sixteenth of the row.
- different: share of the row's places with a token that stands nowhere before; a row that repeats few tokens has small
  steps and orders nothing.

And what a plan of the same affinities looks like at lower temperatures, from which `argmax` takes its tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.lit.trained import load_trained
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mamba3dad.fixed_order import FixedOrder
from anomaly3d.models.mamba3dad.gsas import GSAS, order
from anomaly3d.models.mamba3dad.ordering import column_entropy, locality
from anomaly3d.ops.sinkhorn import sinkhorn
from anomaly3d.types import PointCloudBatch

NEIGHBOURS, REACH = 8, 1 / 16
COLDER = ((0.05, 50), (0.01, 50), (0.005, 50), (0.002, 50), (0.0005, 200))


def hilbert(places: Float[Tensor, "T 3"], bits: int = 8) -> Int[Tensor, " T"]:
    """Tokens along Hilbert's curve through the cloud's cube (J. Skilling, Programming the Hilbert curve, 2004)."""
    low, high = places.amin(dim=0), places.amax(dim=0)
    axes = ((places - low) / (high - low).max() * (2**bits - 1)).round().long().T.numpy().copy()
    bit = 1 << (bits - 1)
    while bit > 1:
        low_bits = bit - 1
        for axis in range(3):
            flip = (axes[axis] & bit) != 0
            exchange = np.where(flip, 0, (axes[0] ^ axes[axis]) & low_bits)
            axes[0] ^= np.where(flip, low_bits, exchange)
            axes[axis] ^= exchange
        bit >>= 1
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    turn = np.zeros_like(axes[0])
    bit = 1 << (bits - 1)
    while bit > 1:
        turn ^= np.where(axes[2] & bit, bit - 1, 0)
        bit >>= 1
    axes ^= turn
    key = np.zeros_like(axes[0])
    for level in reversed(range(bits)):
        for axis in range(3):
            key = (key << 1) | ((axes[axis] >> level) & 1)
    return torch.from_numpy(key.argsort(kind="stable"))


def scores(row: Int[Tensor, " R"], places: Float[Tensor, "T 3"]) -> tuple[float, float, float]:
    """(step, near, different) of a row of tokens; near is NaN where not every token stands in it once."""
    distance = torch.cdist(places, places)
    step = (distance[row[:-1], row[1:]].mean() / distance.mean()).item()
    different = len(row.unique()) / len(row)
    if len(row) != len(places) or different < 1:
        return step, float("nan"), different
    layers = len(places) // len(places.unique(dim=0))
    around = distance.topk((NEIGHBOURS + 1) * layers, largest=False).indices
    place = row.argsort()
    gap = (place[around] - place[:, None]).abs()
    itself = around == torch.arange(len(places))[:, None]
    return step, (gap <= REACH * len(places))[~itself].float().mean().item(), different


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clouds", type=int, default=20)
    args = parser.parse_args(arguments)
    trained = load_trained(args.run)
    detector = trained.detector
    if not isinstance(detector, Mamba3dAD) or not isinstance(detector.gsas, GSAS):
        parser.error(f"{args.run} is no training of Mamba3dAD with order: gsas")
    trained.data.setup("test")
    normal = [batch for batch in trained.data.test_dataloader() if batch.label.item() == 0][: args.clouds]
    torch.manual_seed(0)
    untrained = Mamba3dAD(**trained.config["model"]["detector"]["init_args"]).gsas.eval().to(trained.device)
    assert isinstance(untrained, GSAS)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    losses: dict[str, list[tuple[float, float, float, float]]] = {}
    plans: dict[str, list[tuple[float, float, float, float]]] = {}
    for batch in normal:
        tokens, centres = tokens_of(detector, batch.to(trained.device))
        places = centres[0].repeat(tokens.shape[1], 1).cpu()
        for name, sorter in {"GSAS, trained": detector.gsas, "GSAS, untrained": untrained}.items():
            descriptors = sorter.describe(tokens, centres)
            plan, sharp = (sorter.plan(descriptors, centres, sharp) for sharp in (False, True))
            ways: dict[str, Int[Tensor, "B R"]] = {
                "`sort`": order(plan, "sort"),
                "`argmax` of the near-binary plan": order(sharp, "argmax"),
                "`argmax` of the plan of training": order(plan, "argmax"),
            }
            for how, row in ways.items():
                rows.setdefault(f"{name}, {how}", []).append(scores(row[0].cpu(), places))
            losses.setdefault(name, []).append(measured(plan, centres, detector.locality_sigma))
        affinity = detector.gsas.affinity(detector.gsas.describe(tokens, centres)).detach()
        for tau, iterations in ((detector.gsas.tau, detector.gsas.iterations), *COLDER):
            plan = sinkhorn(affinity, tau, iterations)
            entropy, _, _, row = measured(plan, centres, detector.locality_sigma)
            step, _, different = scores(order(plan, "argmax")[0].cpu(), places)
            plans.setdefault(f"{tau:g}, {iterations}", []).append((entropy, different, step, row))
        fixed: dict[str, Callable[[], Tensor]] = {
            "random": lambda: FixedOrder("random").order(places[None])[0],  # noqa: B023
            "coordinate": lambda: FixedOrder("coordinate").order(places[None])[0],  # noqa: B023
            "Hilbert's curve": lambda: hilbert(places),  # noqa: B023
        }
        for name, make in fixed.items():
            rows.setdefault(name, []).append(scores(make(), places))
    print(f"{len(normal)} normal test clouds, {len(places)} tokens, {trained.epochs} epochs\n")
    print("| order | step | near | different |\n|:--|--:|--:|--:|")
    for name, values in rows.items():
        step, near, different = np.mean(values, axis=0)
        print(f"| {name} | {step:.2f} | {'' if np.isnan(near) else f'{near:.2f}'} | {different:.2f} |")
    print("\n| sorter | L_ent | L_loc | largest error of a column sum | of a row sum, in S/T |\n|:--|--:|--:|--:|--:|")
    for name, values in losses.items():
        entropy, local, column, row = np.array(values).T
        print(f"| {name} | {entropy.mean():.3f} | {local.mean():.4f} | {column.max():.1e} | {row.max():.1e} |")
    print("\n| tau, iterations | column entropy, nats | different | step | largest error of a row sum, in S/T |")
    print("|:--|--:|--:|--:|--:|")
    for name, values in plans.items():
        entropy, different, step, row = np.array(values).T
        print(f"| {name} | {entropy.mean():.2f} | {different.mean():.2f} | {step.mean():.2f} | {row.max():.2f} |")


@torch.no_grad()
def tokens_of(detector: Mamba3dAD, batch: PointCloudBatch) -> tuple[Float[Tensor, "1 L M D"], Float[Tensor, "1 M 3"]]:
    """What the sorter is given for a cloud."""
    _, seen, frames, _ = detector.place_predicted(batch)
    groups = detector.sampler(seen, frames)
    tokens = detector.standardised(detector.tokens(groups))
    return rearrange(tokens, "b m (l d) -> b l m d", l=len(detector.blocks)), groups.centres


def measured(
    plan: Float[Tensor, "1 T S"], centres: Float[Tensor, "1 M 3"], sigma: float
) -> tuple[float, float, float, float]:
    """Both losses and the plan's largest deviations from its marginals."""
    share = plan.shape[2] / plan.shape[1]
    column, row = (plan.sum(1) - 1).abs().max(), (plan.sum(2) / share - 1).abs().max()
    return column_entropy(plan).item(), locality(plan, centres, sigma).item(), column.item(), row.item()


if __name__ == "__main__":
    with torch.no_grad():
        main()
