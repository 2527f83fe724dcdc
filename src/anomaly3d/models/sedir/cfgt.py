"""Coarse-to-fine global tokenization (CFGT): three nested resolutions, and the cloud as a whole."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_heads

GlobalFeature = Literal["cfgt", "act", "mean", "max", "none"]


class Encoded(NamedTuple):
    """Encoded tokens of the k/r, k and k r neighbourhoods and the adaptive context token; None where not asked for."""

    base: Float[Tensor, "B G W"]
    fine: Float[Tensor, "B G W"] | None = None
    coarse: Float[Tensor, "B G W"] | None = None
    act: Float[Tensor, "B W"] | None = None


def global_feature(encoded: Encoded, kind: GlobalFeature = "cfgt") -> Float[Tensor, "B F"]:
    """`f_global`: what says of a cloud as a whole what it is (Table 7).

    `cfgt` is the means of the base, coarse and fine tokens, and the context token, one after the other (F = 4 W);
    `act` the context token alone, `mean` and `max` pool the base tokens (F = W).
    """
    if kind == "mean":
        return encoded.base.mean(1)
    if kind == "max":
        return encoded.base.amax(1)
    assert encoded.act is not None
    if kind == "act":
        return encoded.act
    assert encoded.coarse is not None
    assert encoded.fine is not None
    return torch.cat([encoded.base.mean(1), encoded.coarse.mean(1), encoded.fine.mean(1), encoded.act], dim=-1)


class GlobalToken(nn.Module):
    """z: the global feature through Linear, LayerNorm, GELU and Linear, of unit length."""

    def __init__(self, feature_width: int, width: int = 256) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(feature_width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, feature: Float[Tensor, "B F"]) -> Float[Tensor, "B W"]:
        """The global token of each cloud."""
        return F.normalize(self.projection(feature).float(), dim=-1)


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
        context: prepend the context token.
    """

    def __init__(
        self,
        token_width: int,
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        hidden: int = 1024,
        dropout: float = 0.1,
        context: bool = True,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.project = nn.Linear(token_width, width)
        self.context = nn.Parameter(torch.randn(width) * 0.02) if context else None
        # Not nn.TransformerEncoder, which starts every layer from the same weights.
        self.layers = nn.Sequential(*(_encoder_layer(width, heads, hidden, dropout) for _ in range(depth)))

    def forward(
        self,
        base: Float[Tensor, "B G D"],
        position: Float[Tensor, "B G W"],
        sides: tuple[Float[Tensor, "B G D"], Float[Tensor, "B G D"]] | None = None,
    ) -> Encoded:
        """Encode the frozen tokens of one, or with `sides`, the fine and the coarse ones, of three neighbourhoods."""
        sequence = self.project(base) + position
        if self.context is not None:
            sequence = torch.cat([repeat(self.context, "w -> b 1 w", b=len(base)), sequence], dim=1)
        context, encoded = self.layers(sequence).split([sequence.shape[1] - base.shape[1], base.shape[1]], dim=1)
        act = None if self.context is None else context.squeeze(1)
        if sides is None:
            return Encoded(encoded, act=act)
        fine, coarse = self.layers(self.project(torch.cat(sides)) + position.repeat(2, 1, 1)).chunk(2)
        return Encoded(encoded, fine, coarse, act)


def _encoder_layer(width: int, heads: int, hidden: int, dropout: float) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
    # No dropout on the attention weights: drawing them takes 60 % of a training step on a CPU.
    layer.self_attn.dropout = 0.0
    return layer
