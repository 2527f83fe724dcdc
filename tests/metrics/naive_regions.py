"""Regions by flooding and AUPRO by a loop over thresholds: slow, and independent of the package."""

import numpy as np


def flood(xyz: np.ndarray, mask: np.ndarray, radius: float) -> np.ndarray:
    """Region of every labelled point, numbered in the order in which they are met."""
    distance = np.linalg.norm(xyz[:, None].astype(float) - xyz[None], axis=-1)
    labelled = np.flatnonzero(mask)
    region = np.full(len(labelled), -1)
    if len(labelled) < 2:
        return np.zeros(len(labelled), dtype=int)
    others = distance[labelled[np.unique(xyz[labelled], axis=0, return_index=True)[1]]]
    others[others == 0] = np.inf
    nearest = others.min(axis=1)
    reach = radius * np.median(nearest) if np.isfinite(nearest).all() else 0.0
    close = distance[np.ix_(labelled, labelled)] <= reach
    found = 0
    for start in range(len(labelled)):
        if region[start] >= 0:
            continue
        waiting = [start]
        while waiting:
            point = waiting.pop()
            if region[point] < 0:
                region[point] = found
                waiting += np.flatnonzero(close[point] & (region < 0)).tolist()
        found += 1
    return region


def naive_aupro(regions: list[np.ndarray], normal: np.ndarray, limit: float = 0.3) -> float:
    """Scores of each region's points and of all normal points; straight lines between thresholds."""
    rates, overlaps = [0.0], [0.0]
    for threshold in sorted({float(s) for part in [*regions, normal] for s in part}, reverse=True):
        rates.append(float((normal >= threshold).mean()))
        overlaps.append(float(np.mean([(part >= threshold).mean() for part in regions])))
    inside = [i for i, rate in enumerate(rates) if rate <= limit]
    x, y = [rates[i] for i in inside], [overlaps[i] for i in inside]
    if inside[-1] + 1 < len(rates):
        left, right = inside[-1], inside[-1] + 1
        share = (limit - rates[left]) / (rates[right] - rates[left])
        x.append(limit)
        y.append(overlaps[left] + share * (overlaps[right] - overlaps[left]))
    return float(np.trapezoid(y, x)) / limit
