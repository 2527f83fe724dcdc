"""Coarse-to-fine global tokenization (CFGT): three nested resolutions, and the cloud as a whole."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_heads


class Encoded(NamedTuple):
    """Encoded tokens of the k/2, k and 2k neighbourhoods and the adaptive context token."""

    fine: Float[Tensor, "B G W"]
    base: Float[Tensor, "B G W"]
    coarse: Float[Tensor, "B G W"]
    act: Float[Tensor, "B W"]

    def global_feature(self) -> Float[Tensor, "B 4*W"]:
        """`f_global`: the means of the base, coarse and fine tokens, and the context token."""
        return torch.cat([self.base.mean(1), self.coarse.mean(1), self.fine.mean(1), self.act], dim=-1)


def position_embedding(width: int) -> nn.Sequential:
    """Two-layer ReLU MLP from patch centres (B, G, 3), in the model's frame, to (B, G, width)."""
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))


class CoarseToFineTokenizer(nn.Module):
    """Input projection and a transformer encoder (post-norm), shared by the three resolutions.

    A learnable adaptive context token (ACT) is prepended to the base sequence only, so it sums up what the base
    tokens show; the other two resolutions reach it through the shared weights and the cosine loss.

    Args:
        token_width: channels of the frozen tokens.
        width: channels inside the transformer [inferred].
        depth: encoder layers [paper].
        heads: attention heads [paper].
        hidden: channels inside the feed-forward blocks [inferred].
        dropout: dropout rate of what the layers add and of the feed-forward blocks [inferred].
    """

    def __init__(
        self,
        token_width: int,
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.project = nn.Linear(token_width, width)
        self.context = nn.Parameter(torch.randn(width) * 0.02)
        # Not nn.TransformerEncoder, which starts every layer from the same weights.
        self.layers = nn.Sequential(*(_encoder_layer(width, heads, hidden, dropout) for _ in range(depth)))

    def forward(
        self,
        fine: Float[Tensor, "B G D"],
        base: Float[Tensor, "B G D"],
        coarse: Float[Tensor, "B G D"],
        position: Float[Tensor, "B G W"],
    ) -> Encoded:
        """Encode the frozen tokens of the three neighbourhoods of the same centres."""
        context = repeat(self.context, "w -> b 1 w", b=len(base))
        sequence = torch.cat([context, self.project(base) + position], dim=1)
        act, base_tokens = self.layers(sequence).split([1, position.shape[1]], dim=1)
        sides = self.project(torch.cat([fine, coarse])) + position.repeat(2, 1, 1)
        fine_tokens, coarse_tokens = self.layers(sides).chunk(2)
        return Encoded(fine_tokens, base_tokens, coarse_tokens, act.squeeze(1))


def _encoder_layer(width: int, heads: int, hidden: int, dropout: float) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
    # No dropout on the attention weights: drawing them takes 60 % of a training step on a CPU.
    layer.self_attn.dropout = 0.0
    return layer
