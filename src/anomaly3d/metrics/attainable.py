"""What object-level AUROC and average precision can be, given the numbers of normal and anomalous clouds.

With P normal and n anomalous clouds, AUROC is the share of the P n pairs that are in order: a multiple of 1/(P n), or
of 1/(2 P n) where scores tie. Without ties average precision is

    AP = 1/n sum_{i=1..n} i / (i + f_i),    0 <= f_1 <= ... <= f_n <= P,    AUROC = 1 - (f_1 + ... + f_n) / (P n),

f_i being the normal clouds ranked above the i-th anomalous one. Clouds of equal score share the precision below the
last of them, so that ties can raise AP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import minimize_scalar


@lru_cache
def attainable_prints(pairs: int, decimals: int) -> Int64[np.ndarray, " K"]:
    """Every way to print a multiple of 1/pairs with so many decimals, rounded (a half either way) or cut off.

    Ascending, without repeats, in units of the last digit: 0 to 10^decimals.
    """
    scale = 10**decimals
    if pairs >= scale:
        return np.arange(scale + 1)
    exact = np.arange(pairs + 1) * scale  # numerators over `pairs`
    cut, half_up = exact // pairs, (2 * exact + pairs) // (2 * pairs)
    half_down = -((pairs - 2 * exact) // (2 * pairs))
    return np.unique(np.concatenate([cut, half_up, half_down]))


@lru_cache
def largest_ap(normal: int, anomalous: int) -> Float64[np.ndarray, " U"]:
    """The largest average precision of a ranking without ties, for every number 0 to P n of pairs in order.

    Exact, by dynamic programming over the anomalous clouds from the top: `best[f, s]` is the largest sum of precisions
    so far with f_i <= f and f_1 + ... + f_i = s. Takes O(P^2 n^2) time.
    """
    pairs = normal * anomalous
    best = np.full((normal + 1, pairs + 1), -np.inf)
    best[:, 0] = 0
    for i in range(1, anomalous + 1):
        longer = np.full_like(best, -np.inf)
        for f in range(normal + 1):
            longer[f, f:] = best[f, : pairs + 1 - f] + i / (i + f)
        best = np.maximum.accumulate(longer, axis=0)
    return best[-1, ::-1] / anomalous


@lru_cache
def largest_ap_with_ties(normal: int, anomalous: int) -> Float64[np.ndarray, " V"]:
    """The largest average precision of any ranking, for every number 0 to 2 P n of half pairs in order.

    A tied pair counts half. `best[i, f, s]` is the largest sum of precisions over the i first anomalous and f first
    normal clouds with s half pairs out of order; the last p and q of them share a score. Takes O(P^3 n^3) time.
    """
    halves = 2 * normal * anomalous
    best = np.full((anomalous + 1, normal + 1, halves + 1), -np.inf)
    best[0, 0, 0] = 0
    for i, f in list(np.ndindex(anomalous + 1, normal + 1))[1:]:
        for q, p in list(np.ndindex(i + 1, f + 1))[1:]:
            lost = q * (2 * (f - p) + p)
            before = best[i - q, f - p, : halves + 1 - lost]
            np.maximum(best[i, f, lost:], before + q * i / (i + f), out=best[i, f, lost:])
    return best[-1, -1, ::-1] / anomalous


def largest_mean_ap(auroc: float, curves: Sequence[Float64[np.ndarray, " U"]]) -> float:
    """A bound on the mean of average precisions over rankings whose AUROCs have at most the mean `auroc`.

    By Lagrange: for any price of AUROC, mean AP <= price * auroc + mean over rankings of max (AP - price * AUROC). The
    price with the least bound is searched.

    Args:
        auroc: mean AUROC in [0, 1].
        curves: of each ranking the largest AP at AUROCs evenly spaced from 0 to 1.
    """

    def bound(price: float) -> float:
        return price * auroc + fmean(float(np.max(c - price * np.linspace(0, 1, len(c)))) for c in curves)

    found: Any = minimize_scalar(bound, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    return float(found.fun)
