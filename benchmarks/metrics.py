"""Exact AUROC and average precision together, timed against scikit-learn.

    python benchmarks/metrics.py --points 1e6 1e7

Scores are float32 normal deviates, 2 % of them positive and shifted by one. Prints one CSV line per size: best
of the repeats in seconds, the ratio, and the largest difference between the two values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.metrics.functional import ranking_metrics


def best_time(function: Callable[[], tuple], repeats: int) -> tuple[float, tuple]:
    """Shortest wall time of `repeats` calls in seconds, and the last result."""
    times, result = [], ()
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--positives", type=float, default=0.02, help="share of anomalous points")
    arguments = parser.parse_args()
    print("points,ours_s,sklearn_s,ratio,largest_difference")
    for count in map(int, arguments.points):
        generator = torch.Generator().manual_seed(0)
        target = torch.rand(count, generator=generator) < arguments.positives
        scores = torch.randn(count, generator=generator) + target
        ours, metrics = best_time(lambda s=scores, t=target: ranking_metrics(s, t), arguments.repeats)
        s, t = scores.numpy(), target.numpy()
        theirs, reference = best_time(
            lambda s=s, t=t: (roc_auc_score(t, s), average_precision_score(t, s)), arguments.repeats
        )
        difference = max(abs(a.item() - b) for a, b in zip(metrics, reference, strict=True))
        print(f"{count},{ours:.4f},{theirs:.4f},{theirs / ours:.1f},{difference:.1e}")


if __name__ == "__main__":
    main()
