"""Clouds scored one by one, each in an order of points that its file has no say in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import about
from anomaly3d.models.components.extent import check_extent
from anomaly3d.ops.canonical import order_seen
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


class Scored(NamedTuple):
    """Scores of one cloud; `logits` (C,) where a category is predicted."""

    points: Float[Tensor, " N"]
    object: Float[Tensor, ""]
    logits: Float[Tensor, " C"] | None = None


def score_one_by_one(
    batch: PointCloudBatch, protocol: str, score_cloud: Callable[[Float[Tensor, "N 3"], str], Scored]
) -> AnomalyPrediction:
    """What `score_cloud(points, sample id)` says of each cloud, its point scores back in the file's order.

    Raises:
        InputError: all points of a cloud coincide.
    """
    scored = []
    for cloud, name in zip(batch.clouds(), batch.sample_id, strict=True):
        check_extent(cloud, name)
        order = order_of(cloud, protocol)
        with about(name):
            found = score_cloud(cloud[order], name)
        scored.append(found._replace(points=torch.empty_like(found.points).index_copy_(0, order, found.points)))
    points, objects, logits = zip(*scored, strict=True)
    return AnomalyPrediction(
        point_scores=torch.cat(points).float(),
        object_scores=torch.stack(objects).float(),
        category_logits=None if logits[0] is None else torch.stack(logits).float(),
    )


def order_of(cloud: Float[Tensor, "N 3"], protocol: str) -> Tensor:
    """Indices (N,): the canonical order under `strict`, the file's under `paper`."""
    return order_seen(cloud, canonical=protocol == "strict")
