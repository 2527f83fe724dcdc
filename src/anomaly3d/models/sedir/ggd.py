"""Geometry-guided decoder (GGD): tokens as the cloud's category would have them, with attention drawn to geometry."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_choice, check_heads
from anomaly3d.models.sedir.guidance import Guidance

Decoder = Literal["ggd", "plain"]


class GeometryGuidedAttention(nn.Module):
    """`softmax(Q K^T / sqrt(d_head) + beta b) V` with one bias per key, the same for all queries and heads.

    Or, where the guidance has a gate g instead (an ablation), `softmax(Q K^T / sqrt(d_head)) diag(g) V`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Float[Tensor, "B T W"], memory: Float[Tensor, "B G W"], guidance: Guidance
    ) -> Float[Tensor, "B T W"]:
        """Attend from every query to the memory."""
        values = self.value(memory)
        if guidance.gate is not None:
            values = values * guidance.gate[..., None]
        q, k, v = (
            rearrange(x, "b t (h c) -> b h t c", h=self.heads) for x in (self.query(query), self.key(memory), values)
        )
        size = q.shape[-1]
        if guidance.bias is not None:
            # As one more channel of the keys, met by a one in the queries: the same logits, and no mask, which
            # would rule out the fused kernels (2.6 times slower with gradients, 4 times without, on a CPU).
            channel = rearrange(guidance.bias.to(k.dtype) * size**0.5, "b g -> b 1 g 1").expand(-1, self.heads, -1, -1)
            q, k, v = torch.cat([q, torch.ones_like(q[..., :1])], -1), torch.cat([k, channel], -1), F.pad(v, (0, 1))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=size**-0.5)[..., :size]
        return self.out(rearrange(mixed, "b h t c -> b t (h c)"))


class DecoderLayer(nn.Module):
    """`a = q + GGAttn(q; encoded)`, `b = a + GGAttn(a; previous)`, output `b + FFN([a; b])`; a norm after each sum.

    A plain layer, as in MC3D-AD, has `b + FFN(b)`. That norms come after the sums is [inferred]. Only attention carries
    the tokens to the output, never a residual: an anomalous token has no direct way through.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, joined: bool = True) -> None:
        super().__init__()
        self.joined = joined
        self.attend_encoded = GeometryGuidedAttention(width, heads)
        self.attend_previous = GeometryGuidedAttention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.Linear((1 + joined) * width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "B G W"],
        encoded: Float[Tensor, "B G W"],
        previous: Float[Tensor, "B G W"],
        guidance: Guidance,
    ) -> Float[Tensor, "B G W"]:
        """One refinement of the reconstructed tokens `previous`."""
        a = self.norms[0](query + self.dropout(self.attend_encoded(query, encoded, guidance)))
        b = self.norms[1](a + self.dropout(self.attend_previous(a, previous, guidance)))
        seen = torch.cat([a, b], dim=-1) if self.joined else b
        return self.norms[2](b + self.dropout(self.feed_forward(seen)))


class GeometryGuidedDecoder(nn.Module):
    """Decoder layers and the projection back to the frozen tokens' width.

    The query of centre s is `z + PE(s)` in every layer [inferred]: without the position all outputs were equal; without
    a global token, as in MC3D-AD, it is the position alone. The first layer's previous output is the encoded base
    tokens [inferred].

    Args:
        token_width: channels of the frozen tokens.
        width: channels inside the transformer [inferred].
        depth: layers [paper].
        heads: attention heads [paper].
        hidden: channels inside the feed-forward blocks [inferred].
        dropout: dropout rate of what the layers add and of the feed-forward blocks [inferred].
        decoder: `ggd`, or `plain`: the feed-forward blocks see the second attention alone.
    """

    def __init__(
        self,
        token_width: int,
        width: int = 256,
        depth: int = 4,
        heads: int = 8,
        hidden: int = 1024,
        dropout: float = 0.1,
        decoder: Decoder = "ggd",
    ) -> None:
        super().__init__()
        check_choice(get_args(Decoder), decoder=decoder)
        joined = decoder == "ggd"
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout, joined) for _ in range(depth))
        self.project = nn.Linear(width, token_width)

    def forward(
        self,
        z: Float[Tensor, "B W"] | None,
        position: Float[Tensor, "B G W"],
        encoded: Float[Tensor, "B G W"],
        guidance: Guidance,
    ) -> Float[Tensor, "B G D"]:
        """The reconstructed base tokens."""
        query = position if z is None else z[:, None] + position
        reconstructed = encoded
        for layer in self.layers:
            reconstructed = layer(query, encoded, reconstructed, guidance)
        return self.project(reconstructed)
