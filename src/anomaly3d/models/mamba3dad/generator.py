"""Anomalous features for training: noise on a few slots, with exact labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Corrupted(NamedTuple):
    """Slot features, some of them corrupted, and which."""

    features: Float[Tensor, "B S D"]
    labels: Float[Tensor, "B S"]  # 1 where noise was added


class AnomalyGenerator(nn.Module):
    """q~ = q + gamma * m * eps with eps ~ N(0, sigma^2 I) and one Bernoulli(p) mask m per slot.

    In evaluation mode features pass unchanged. gamma = softplus of a free parameter, clamped to `gamma_range`; the
    BCE rewards an ever larger gamma (a louder anomaly is easier to tell), so the upper end is what holds it.

    Args:
        probability: p. [paper]
        sigma: standard deviation of the noise per channel, before gamma. [paper]
        gamma: initial value. [paper]
        gamma_range: clamp. [inferred]
    """

    def __init__(
        self,
        probability: float = 0.05,
        sigma: float = 0.05,
        gamma: float = 0.05,
        gamma_range: tuple[float, float] = (0.01, 10.0),
    ) -> None:
        super().__init__()
        self.probability = probability
        self.sigma = sigma
        self.gamma_range = gamma_range
        self.raw_gamma = nn.Parameter(torch.tensor(math.log(math.expm1(gamma))))

    @property
    def gamma(self) -> Float[Tensor, ""]:
        """The noise's learned factor."""
        return nn.functional.softplus(self.raw_gamma).clamp(*self.gamma_range)

    def forward(self, features: Float[Tensor, "B S D"]) -> Corrupted:
        """Corrupt slots of normal features."""
        labels = torch.zeros(features.shape[:2], device=features.device)
        if not self.training:
            return Corrupted(features, labels)
        labels.bernoulli_(self.probability)
        noise = self.sigma * torch.randn_like(features)
        return Corrupted(features + self.gamma * labels[..., None] * noise, labels)
