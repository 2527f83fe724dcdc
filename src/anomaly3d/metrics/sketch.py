"""Scores of one cloud in a fixed number of quantiles: what a bootstrap over clouds needs to remember of its points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Shaped

# Half of the quantiles are spread evenly, which serves AUROC; half get denser towards the largest scores, where
# precision and small false positive rates are decided (neighbours there differ by 6 % of their rank) [ours].
_LEVELS = np.unique(np.concatenate([np.linspace(0, 1, 257), np.geomspace(1e-6, 1, 256)]))
MASS: Float64[np.ndarray, " Q"] = np.diff(_LEVELS)
"""Share of a cloud's weight that each quantile stands for; sums to 1."""
_MIDDLE = (_LEVELS[1:] + _LEVELS[:-1]) / 2
QUANTILES = len(MASS)


def quantiles(
    scores: Shaped[np.ndarray, " N"], weight: Float64[np.ndarray, " N"] | None = None
) -> Shaped[np.ndarray, " Q"]:
    """The scores at the middle of each `MASS`, from the largest down; zeros if there are no scores.

    Args:
        scores: of the points, in any order.
        weight: of each, positive; equal weights if not given.
    """
    if not len(scores):
        return np.zeros(QUANTILES, dtype=np.float32)
    if weight is None:
        return np.sort(scores)[::-1][np.minimum((_MIDDLE * len(scores)).astype(np.int64), len(scores) - 1)]
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(weight[order])
    position = np.searchsorted(reached, _MIDDLE * reached[-1], side="right")
    return scores[order][np.minimum(position, len(scores) - 1)]
