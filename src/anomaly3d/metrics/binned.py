"""Ranking metrics of binned scores, each with bounds that hold whatever the order inside the bins is.

Bins ascend; `positives` and `negatives` are what they hold. P and N are the totals; of one bin, p and q are its
positives and negatives, TP and FP those of all bins above it. Leading dimensions are batches (bootstrap replicates).
With a bin for every distinct score (`tied_bins`) the values are exact. Everything is float64; the bounds hold up to its
rounding. A metric is NaN, with its bounds, where a class is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from anomaly3d.metrics.functional import checked

FPR_LIMIT = 0.3
"""Largest false positive rate of AUPRO (Bergmann et al., MVTec AD, IJCV 2021, section 4.2)."""

Counts = Shaped[Tensor, "*batch bins"]


class Bounded(NamedTuple):
    """A metric of binned scores, and the interval that certainly holds the metric of the scores themselves."""

    value: Tensor
    lower: Tensor
    upper: Tensor


class F1Max(NamedTuple):
    """The largest F1 over the bins' lower edges, the bin of that edge, and what no threshold exceeds."""

    value: Tensor
    bin: Tensor
    upper: Tensor


class TiedBins(NamedTuple):
    """Distinct scores, ascending, with the positives, negatives and weight of each."""

    scores: Float[Tensor, " bins"]
    positives: Float64[Tensor, " bins"]
    negatives: Float64[Tensor, " bins"]
    weight: Float64[Tensor, " bins"]


def tied_bins(
    scores: Float[Tensor, " N"],
    target: Bool[Tensor, " N"] | Int[Tensor, " N"],
    weight: Float64[Tensor, " P"] | None = None,
) -> TiedBins:
    """One bin per distinct score: the exact form of every function here. Without scores there is one, empty.

    Args:
        scores: larger is more anomalous, any finite value.
        target: true or 1 for an anomaly.
        weight: of each positive, in order; 1 if not given.

    Raises ValueError as `ranking_metrics` does.
    """
    scores, target = checked(scores, target)
    values, index = np.unique(scores.cpu().numpy(), return_inverse=True)
    if not len(values):
        return TiedBins(torch.zeros(1), *torch.zeros(3, 1, dtype=torch.float64))
    truth = target.cpu().numpy()
    of_positives = None if weight is None else weight.cpu().numpy()
    counts = (
        np.bincount(index[truth], minlength=len(values)),
        np.bincount(index[~truth], minlength=len(values)),
        np.bincount(index[truth], of_positives, minlength=len(values)),
    )
    return TiedBins(torch.from_numpy(values), *(torch.from_numpy(count.astype(np.float64)) for count in counts))


def binned_auroc(positives: Counts, negatives: Counts) -> Bounded:
    """Area under the ROC curve.

        AUROC = sum over bins of p (N - FP - q / 2) / (P N),    error <= 1/2 sum over bins of p q / (P N)

    A pair in different bins is ordered for certain; one inside a bin counts one half, as a tie does, and may be worth 0
    or 1.
    """
    p, q = positives.double(), negatives.double()
    pairs = p.sum(-1) * q.sum(-1)
    below = q.cumsum(-1) - q
    value = (p * (below + q / 2)).sum(-1) / pairs
    half = (p * q).sum(-1) / 2 / pairs
    return Bounded(value, value - half, value + half)


def binned_average_precision(positives: Counts, negatives: Counts) -> Bounded:
    """Average precision (the area under the precision-recall steps).

        AP    = 1/P sum over bins of p (TP + p) / (TP + p + FP + q)
        upper = 1/P sum over bins of p (TP + p) / (TP + p + FP)
        lower = 1/P sum over bins of p/2 (g(1) + g(p)),    g(i) = (TP + i) / (TP + i + FP + q)

    The value takes a bin as one tie. It is at most what the bin gives with its positives first and tied, as tied
    positives share the precision below the last of them, and at least what it gives with its negatives first and its
    positives one by one: the sum of g(1) to g(p). As g is concave, that sum is no less than its trapezoid.
    """
    p, q, tp, fp = _from_above(positives, negatives)
    total = torch.where(q.sum(-1) > 0, p.sum(-1), torch.nan)

    def mean(precision_times_p: Tensor) -> Tensor:
        return precision_times_p.sum(-1) / total

    last = _ratio(tp + p, tp + p + fp + q)
    first = _ratio(tp + p.clamp(max=1), tp + p.clamp(max=1) + fp + q)
    return Bounded(mean(p * last), mean(p * (first + last) / 2), mean(p * _ratio(tp + p, tp + p + fp)))


def binned_aupro(overlap: Counts, negatives: Counts, limit: float = FPR_LIMIT) -> Bounded:
    """Area under the curve of per-region overlap over false positive rate, up to `limit` and divided by it.

    The per-region overlap at a threshold is the mean over regions of the share of a region's points that reach it. If
    every anomalous point weighs 1 / (points of its region), it is the share of the weight that reaches the threshold,
    so AUPRO is a partial area under a weighted ROC curve. Between the bins' edges the curve is taken as straight, as
    between the points of a ROC curve; it never falls, so in a bin it lies between the overlaps at the bin's two edges.

    Args:
        overlap: weight of the anomalous points of each bin.
        negatives: normal points of each bin.
        limit: largest false positive rate, in (0, 1].
    """
    w, q, above, fp = _from_above(overlap, negatives)
    end = limit * q.sum(-1, keepdim=True)
    inside = (end - fp).clamp(min=0).minimum(q)  # the bin's part of the way to the limit
    whole = w.sum(-1) * end.squeeze(-1)
    heights = (above + w * _ratio(inside, q) / 2, above, above + w)
    return Bounded(*((inside * height).sum(-1) / whole for height in heights))


def binned_f1_max(positives: Counts, negatives: Counts) -> F1Max:
    """The largest F1 = 2 TP / (TP + FP + P) with a bin's lower edge as threshold; `value` is attained there.

    A threshold inside a bin reaches at most all its positives and none of its negatives, which gives `upper`.
    """
    p, q, tp, fp = _from_above(positives, negatives)
    total = torch.where((p.sum(-1) > 0) & (q.sum(-1) > 0), p.sum(-1), torch.nan).unsqueeze(-1)
    f1 = 2 * (tp + p) / (tp + p + fp + q + total)
    upper = torch.where(p > 0, 2 * (tp + p) / (tp + p + fp + total), f1)
    highest = f1.shape[-1] - 1 - f1.flip(-1).argmax(-1)  # of equal ones the highest threshold
    return F1Max(f1.amax(-1), highest, upper.amax(-1))


def precision_recall_f1(true_positives: int, false_positives: int, positives: int) -> tuple[float, float, float]:
    """Of the predictions `score >= threshold`; NaN without positives, precision also where nothing is predicted."""
    predicted = true_positives + false_positives
    precision = true_positives / predicted if predicted and positives else float("nan")
    if not positives:
        return precision, float("nan"), float("nan")
    return precision, true_positives / positives, 2 * true_positives / (predicted + positives)


def _from_above(positives: Counts, negatives: Counts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p and q of each bin as float64, and the sums of each over the bins above."""
    p, q = positives.double(), negatives.double()
    tp, fp = (part.flip(-1).cumsum(-1).flip(-1) - part for part in (p, q))
    return p, q, tp, fp


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where there is nothing."""
    return torch.where(whole > 0, part / whole, 0)
