"""Global query decoder: positions ask the encoded cloud what should be there."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.models.mc3d_ad.attention import FeedForward, MaskedAttention


class DecoderLayer(nn.Module):
    """`a = norm(P + A(P; encoded))`, `b = norm(a + A(a + P; previous))`, output `norm(b + FFN(b))`.

    Two branches of attention: to the encoded tokens, masked, and to what the layer before rebuilt, not masked (public
    code). The query starts from the position P alone, in every layer, so a token has no direct way to its own output.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attend_encoded = MaskedAttention(width, heads)
        self.attend_previous = MaskedAttention(width, heads)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        encoded: Float[Tensor, "B G W"],
        previous: Float[Tensor, "B G W"],
        position: Float[Tensor, "B G W"],
        visible: Int[Tensor, "B V"] | None,
    ) -> Float[Tensor, "B G W"]:
        """One refinement of the rebuilt tokens `previous`."""
        found = self.attend_encoded(position, encoded, position, visible)
        a = self.norms[0](position + self.dropout(found))
        b = self.norms[1](a + self.dropout(self.attend_previous(a + position, previous, position)))
        return self.norms[2](b + self.dropout(self.feed_forward(b)))


class GlobalQueryDecoder(nn.Module):
    """`depth` layers, a norm and the projection back to the frozen tokens' width (sizes as in `MC3DAD`).

    The first layer's previous output is the encoded tokens (public code).
    """

    def __init__(self, token_width: int, width: int, depth: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, token_width)

    def forward(
        self, encoded: Float[Tensor, "B G W"], position: Float[Tensor, "B G W"], visible: Int[Tensor, "B V"] | None
    ) -> Float[Tensor, "B G D"]:
        """The rebuilt tokens."""
        rebuilt = encoded
        for layer in self.layers:
            rebuilt = layer(encoded, rebuilt, position, visible)
        return self.project(self.norm(rebuilt))
