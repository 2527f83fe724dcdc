"""Anomalous features for training: noise on a few slots, with exact labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.ops.precision import no_autocast


class Corrupted(NamedTuple):
    """Slot features, some of them corrupted, and which."""

    features: Float[Tensor, "B S D"]
    labels: Float[Tensor, "B S"]  # 1 where noise was added, or the share of it


class AnomalyGenerator(nn.Module):
    """q~ = q + gamma * m * eps with eps ~ N(0, sigma^2 I) and one Bernoulli(p) mask m per slot.

    In evaluation mode features pass unchanged. gamma = softplus of a free parameter, held in `gamma_range`. Both ends
    matter. The BCE rewards an ever larger gamma (a louder anomaly is easier to tell), and the upper end stops that. At
    the paper's initial 0.05 the noise has a standard deviation of 0.0025 beside features of about 1: the discriminator
    does not see it, so gamma has no direction to move in. The lower end is therefore where training starts: at 10, a
    deviation of 0.5, a tiny discriminator leaves chance within a hundred steps, at 5 it had not after 250. (0, 20) is
    the literal reading. The gradient passes the clamp unchanged, so that gamma does not stick to an end.

    Args:
        probability: p. [paper]
        sigma: standard deviation of the noise per channel, before gamma. [paper]
        gamma: initial value, before the clamp. [paper]
        gamma_range: least and greatest gamma. [inferred]
    """

    def __init__(
        self,
        probability: float = 0.05,
        sigma: float = 0.05,
        gamma: float = 0.05,
        gamma_range: tuple[float, float] = (10.0, 20.0),
    ) -> None:
        super().__init__()
        self.probability = probability
        self.sigma = sigma
        self.gamma_range = gamma_range
        start = min(max(gamma, gamma_range[0]), gamma_range[1])
        self.raw_gamma = nn.Parameter(torch.tensor(start + math.log(-math.expm1(-start))))  # softplus, inverted

    @property
    def gamma(self) -> Float[Tensor, ""]:
        """The noise's learned factor."""
        free = nn.functional.softplus(self.raw_gamma)
        return free + (free.clamp(*self.gamma_range) - free).detach()

    def forward(self, features: Float[Tensor, "B S D"], shares: Float[Tensor, "B M S"] | None = None) -> Corrupted:
        """Corrupt slots of normal features.

        With the `shares` that each patch has in each slot, the mask is drawn per patch and passed on: labels are
        sum_m shares_ms mask_m, and scale the noise [paper, implementation section; how it is scaled is inferred].
        """
        if not self.training:
            return Corrupted(features, features.new_zeros(features.shape[:2]))
        drawn = features if shares is None else shares
        labels = torch.zeros(drawn.shape[:2], device=features.device).bernoulli_(self.probability)
        if shares is not None:
            with no_autocast(shares):
                labels = einsum(shares.detach().float(), labels, "b m s, b m -> b s").clamp(0, 1)
        noise = self.sigma * torch.randn_like(features)
        return Corrupted(features + self.gamma * labels[..., None] * noise, labels)
