"""Greedy coreset: the few features that leave no other far away (Roth et al., PatchCore, CVPR 2022, Algorithm 1)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor

from anomaly3d.ops.precision import no_autocast


@torch.no_grad()
def greedy_coreset(
    features: Float[Tensor, "N D"],
    size: int,
    seed: int = 0,
    projected: int | None = 128,
    progress: bool = True,
    first: int | None = None,
) -> Int[Tensor, " size"]:
    """Indices of `size` features, each the one farthest from those before it, in the order in which they were chosen.

    Without a projection nothing is random. A size of N or more returns all, in their own order.

    Args:
        features: rows of any unit.
        size: of the coreset.
        seed: of the random projection.
        projected: columns of the Gaussian projection (Johnson-Lindenstrauss) in which distances are taken where the
            features have more [paper: 128]; None compares the features themselves.
        progress: draw a progress bar on standard error.
        first: index of the first; None takes the feature farthest from the mean [ours; published: random].
    """
    count, width = features.shape
    if size >= count:
        return torch.arange(count, device=features.device)
    with no_autocast(features):
        points = features - features.mean(0)
        if projected is not None and width > projected:
            matrix = torch.randn(width, projected, generator=torch.Generator().manual_seed(seed)) / projected**0.5
            points = points @ matrix.to(points)
        squares = points.square().sum(1)
        chosen = torch.empty(size, dtype=torch.int64, device=points.device)
        chosen[0] = squares.argmax() if first is None else first
        distance = torch.full_like(squares, torch.inf)
        steps = range(1, size)
        console = Console(stderr=True)
        for i in track(steps, "coreset", console=console, transient=True, disable=not progress):
            latest = chosen[i - 1]
            # |a|^2 + |b|^2 - 2ab reads the features once; what it rounds off is far below the largest distance.
            new = torch.addmv(squares + squares[latest], points, points[latest], alpha=-2)
            torch.minimum(distance, new, out=distance)
            distance[latest] = -torch.inf
            chosen[i] = distance.argmax()
    return chosen
