"""Balls and boxes that a detector learns, and others with dents, which it has to find."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly3d.models.base import Detector
from anomaly3d.types import PointCloudBatch

Shape = Callable[[int, int], Tensor]
"""A cloud of a number of points, from a seed."""


def ball(n: int, seed: int) -> Tensor:
    """An ellipsoid, 10 x 8 x 6."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return 5 * torch.nn.functional.normalize(x, dim=1) * torch.tensor([1.0, 0.8, 0.6])


class Dents:
    """Four normal clouds of each shape to train on, and six of each with a dent, in places of their own.

    Args:
        box: the second shape, with a side at y = 3.
    """

    def __init__(self, box: Shape) -> None:
        clouds = [make(1500, seed) for seed in range(4) for make in (ball, box)]
        self.normal = PointCloudBatch.pack(clouds, [str(i) for i in range(8)], category=[0, 1] * 4)
        dented, masks = [], []
        for seed in range(20, 26):
            for make, spot in ((ball, [0.0, 0.0, 3.0]), (box, [0.0, 3.0, 0.0])):
                xyz = make(1500, seed)
                near = torch.exp(-((xyz - torch.tensor(spot)).norm(dim=1) ** 2) / 0.8)
                dented.append(xyz * (1 - 0.35 * near[:, None]))
                masks.append(near > 0.3)
        self.dented = PointCloudBatch.pack(dented, [str(i) for i in range(12)])
        self.mask = torch.cat(masks)

    def p_auroc(self, detector: Detector) -> float:
        """How well the detector's scores tell the dents' points from the others."""
        scores = detector.eval().score(self.dented).point_scores
        return float(roc_auc_score(self.mask.numpy(), scores.numpy()))


def train(detector: Detector, loss: Callable[[], Tensor]) -> None:
    """150 steps of AdamW."""
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
