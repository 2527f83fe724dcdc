"""Tokens in units of their own variation [ours]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.models.components.ranks import gather_ranks

_SMALLEST_VARIANCE = 1e-6  # normalised tokens have a mean square of one


class TokenStandardiser(nn.Module):
    """`(f - mean) / deviation` per channel, over the base tokens of all training clouds seen so far.

    Frozen tokens share a large constant part: with the untrained backbone 93 % of their mean square. Noise in
    proportion to their norm then drowns what tells them apart, and the losses hardly see it.

    The statistics are saved with the checkpoint; before the first cloud tokens pass unchanged. A step is scaled by what
    was seen until then, itself included: batches that are accumulated know less of each other than processes do, so
    that the first epoch's steps are alike in both, but not equal. Without it, as under `paper`, they are.
    """

    mean: Float[Tensor, " D"]
    variance: Float[Tensor, " D"]
    clouds: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("clouds", torch.tensor(0))

    @torch.no_grad()
    def observe(self, tokens: Float[Tensor, "B G D"]) -> None:
        """Take the clouds of this step, of all ranks, into the statistics. A collective call in DDP."""
        means, variances = gather_ranks(tokens.mean(1), tokens.var(1, correction=0))
        new, old = len(means), self.clouds.item()
        share = new / (old + new)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        shift = mean - self.mean
        spread = share * (1 - share) * shift.square()
        self.variance.copy_((1 - share) * self.variance + share * variance + spread)
        self.mean.add_(share * shift)
        self.clouds.add_(new)

    def forward(self, tokens: Float[Tensor, "B G D"]) -> Float[Tensor, "B G D"]:
        """Standardised tokens."""
        if self.clouds == 0:
            return tokens
        return (tokens - self.mean) * (self.variance + _SMALLEST_VARIANCE).rsqrt()
