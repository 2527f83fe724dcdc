"""Clouds with scores, and their metrics by a loop over categories with scikit-learn."""

import numpy as np
import pytest
import torch
from naive_regions import flood, naive_aupro
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

NAMES = ("cup", "chair", "plier")


def make_cloud(index: int, category: int, label: int, seed: int = 0) -> dict:
    rng = np.random.default_rng([seed, index])
    size = int(rng.integers(5, 40))
    mask = rng.random(size) < (0.3 if label else 0)
    if label:
        mask[0] = True
    return {
        "sample_id": f"{NAMES[category]}/test/{index:03d}",
        "category": category,
        "label": label,
        "xyz": torch.from_numpy(rng.random((size, 3), dtype=np.float32)),
        "mask": torch.from_numpy(mask),
        # Not in [0, 1], rounded so that scores tie within and between clouds.
        "point_scores": torch.from_numpy((8 * rng.standard_normal(size) + 9 * mask).round()).float(),
        "object_score": float(np.round(3 * rng.standard_normal() + 2 * label - 4)),
    }


def make_clouds(count: int = 40, seed: int = 0) -> list[dict]:
    return [make_cloud(i, i % len(NAMES), int(i % 5 < 2), seed) for i in range(count)]


def make_batch(clouds: list[dict], mask: bool = True, logits: torch.Tensor | None = None):
    batch = PointCloudBatch.pack(
        [c["xyz"] for c in clouds],
        [c["sample_id"] for c in clouds],
        [c["category"] for c in clouds],
        [c["label"] for c in clouds],
        [None if c.get("unmasked") else c["mask"] for c in clouds] if mask else None,
    )
    prediction = AnomalyPrediction(
        torch.cat([c["point_scores"] for c in clouds]), torch.tensor([c["object_score"] for c in clouds]), logits
    )
    return prediction, batch


def evaluate(clouds: list[dict], batch_size: int = 7, exact: bool = True, replicates: int = 0, **kwargs):
    evaluator = Evaluator(NAMES, exact=exact, replicates=replicates)
    for start in range(0, len(clouds), batch_size):
        evaluator.update(*make_batch(clouds[start : start + batch_size], **kwargs))
    return evaluator.compute()


def naive_row(clouds: list[dict], category: int) -> dict:
    chosen = [c for c in clouds if c["category"] == category]
    label, score = [c["label"] for c in chosen], [c["object_score"] for c in chosen]
    mask = np.concatenate([c["mask"] for c in chosen])
    points = np.concatenate([c["point_scores"] for c in chosen])
    regions = [
        c["point_scores"][c["mask"]].numpy()[region == r]
        for c in chosen
        for region in [flood(c["xyz"].numpy(), c["mask"].numpy(), 6.0)]
        for r in np.unique(region)
    ]
    single = [c for c in chosen if c["mask"].any() and not c["mask"].all()]
    return {
        "category": NAMES[category],
        "o_auroc": roc_auc_score(label, score),
        "o_aupr": average_precision_score(label, score),
        "p_auroc": roc_auc_score(mask, points),
        "p_aupr": average_precision_score(mask, points),
        "aupro": naive_aupro(regions, points[~mask]),
        "clouds": len(chosen),
        "anomalous_clouds": sum(label),
        "points": len(points),
        "regions": len(regions),
        "p_auroc_per_cloud": np.mean([roc_auc_score(c["mask"], c["point_scores"]) for c in single]),
    }


def assert_equals_naive(result, clouds):
    for index, row in enumerate(result.to_frame().to_dict("records")):
        expected = naive_row(clouds, index)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)
