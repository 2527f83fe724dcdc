"""Feature jitter: noise on the tokens, so that copying its input is no solution for the network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FeatureJitter(nn.Module):
    """Add `N(0, 1) * ||f||_2 / d * scale` to every token f of width d; in training only.

    As in UniAD (You et al., NeurIPS 2022), MC3D-AD and SeDiR, with the same values.

    Args:
        scale: strength of the noise.
        probability: chance of each cloud to be jittered, in every call.
    """

    def __init__(self, scale: float = 20.0, probability: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.probability = probability

    def forward(self, tokens: Float[Tensor, "B G D"]) -> Float[Tensor, "B G D"]:
        """The jittered tokens; unchanged in evaluation."""
        if not self.training or self.scale == 0:
            return tokens
        strength = self.scale * tokens.norm(dim=-1, keepdim=True) / tokens.shape[-1]
        chosen = torch.rand(len(tokens), 1, 1, device=tokens.device) < self.probability
        return tokens + torch.randn_like(tokens) * strength * chosen
