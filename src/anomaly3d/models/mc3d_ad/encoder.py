"""Local geometry-aware encoder: patches look at each other, as far as the mask lets them."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.models.mc3d_ad.attention import FeedForward, MaskedAttention


class EncoderLayer(nn.Module):
    """`a = norm(x + A(x + P; x))`, output `norm(a + FFN(a))`: a post-norm transformer layer.

    A hidden patch still asks and keeps its residual; only no other patch sees it, nor it itself.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attend = MaskedAttention(width, heads)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B G W"], position: Float[Tensor, "B G W"], visible: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B G W"]:
        """The tokens, each mixed with those that are visible."""
        a = self.norms[0](x + self.dropout(self.attend(x + position, x, position, visible)))
        return self.norms[1](a + self.dropout(self.feed_forward(a)))


class LocalEncoder(nn.Module):
    """Input projection and `depth` masked layers (sizes as in `MC3DAD`)."""

    def __init__(self, token_width: int, width: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(token_width, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(depth))

    def forward(
        self, tokens: Float[Tensor, "B G D"], position: Float[Tensor, "B G W"], visible: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B G W"]:
        """The encoded tokens."""
        x = self.project(tokens)
        for layer in self.layers:
            x = layer(x, position, visible)
        return x
