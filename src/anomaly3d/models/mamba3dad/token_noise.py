"""Corrupted tokens for training: a few patches' tokens moved the way tokens differ from each other [ours]."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_ends, check_range


class CorruptedTokens(NamedTuple):
    """The tokens of clouds, some patches' corrupted, and which."""

    tokens: Float[Tensor, "B M C"]
    labels: Float[Tensor, "B M"]  # 1 where a patch was corrupted


class TokenNoise(nn.Module):
    """x + s (a - b) for a share p of the patches, with a and b tokens of other patches of the batch, s uniform.

    Frozen tokens fill few of their dimensions: noise that fills all is told from them by the dimensions they never use,
    where no defect shows either. The difference of two tokens lies where tokens vary, in proportion to how much. And as
    the tokens are frozen, the model can't make its task easier by changing what the noise is added to.

    In evaluation mode tokens pass unchanged. Draws come from torch's global generator.

    Args:
        probability: p.
        strength: least and greatest s.
    """

    def __init__(self, probability: float = 0.05, strength: tuple[float, float] = (0.1, 1.0)) -> None:
        super().__init__()
        check_range(1e-6, 1 - 1e-6, noise_probability=probability)
        check_ends(1e-6, token_noise=strength)
        self.probability = probability
        self.strength = strength

    @torch.no_grad()
    def forward(self, tokens: Float[Tensor, "B M C"]) -> CorruptedTokens:
        """Corrupt patches of normal clouds; all layers of a patch (parts of C) together."""
        labels = torch.zeros_like(tokens[..., 0])
        if not self.training:
            return CorruptedTokens(tokens, labels)
        labels.bernoulli_(self.probability)
        pool = rearrange(tokens, "b m c -> (b m) c")
        first, second = pool[torch.randint(len(pool), (2, *labels.shape), device=pool.device)]
        low, high = self.strength
        strength = low + (high - low) * torch.rand_like(labels)
        return CorruptedTokens(tokens + (labels * strength)[..., None] * (first - second), labels)
