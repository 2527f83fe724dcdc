"""Tells corrupted slots from normal ones by looking across the cloud."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_heads


class Discriminator(nn.Module):
    """Slot coordinate embedded and added, one pre-norm self-attention over the slots, a two-layer head.

    Args:
        width: channels of a slot (D).
        heads: attention heads. [paper]
        dropout: on the attention weights, and on the attention's output. [paper]
        position_width: hidden channels of the coordinate's MLP. [inferred]
        head_norm: the head normalises its input first [ours]: noise lengthens a LayerNormed feature, which no clean
            feature of a test cloud ever shows, so a head that sees lengths learns to tell the noise and nothing else.
    """

    def __init__(
        self, width: int, heads: int = 8, dropout: float = 0.1, position_width: int = 128, head_norm: bool = True
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.position = nn.Sequential(nn.Linear(3, position_width), nn.GELU(), nn.Linear(position_width, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.LayerNorm(width) if head_norm else nn.Identity(),
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, 1),
        )

    def forward(self, features: Float[Tensor, "B S D"], coordinates: Float[Tensor, "B S 3"]) -> Float[Tensor, "B S"]:
        """One logit per slot; larger is more anomalous."""
        x = features + self.position(coordinates)
        normed = self.norm(x)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        return rearrange(self.head(x + self.dropout(attended)), "b s 1 -> b s")
