"""The ablation's attention adapter: every slot looks at all others instead of scanning them."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from anomaly3d.models.mamba3dad.gate import GatedResidual


class AttentionAdapter(nn.Module):
    """Pre-norm multi-head self-attention over the slots, gated as the LTI adapter.

    A scan knows where in the order a slot stands; attention is told by the sinusoids of Vaswani et al. (2017), added
    behind the norm, without parameters. [ours]

    Args:
        width: channels of a slot (D in shapes), even.
        inner: channels of queries, keys and values together, a multiple of the heads.
        heads: attention heads. [ours]
        gate_bias: initial bias of the gate. [ours]
    """

    def __init__(self, width: int, inner: int, heads: int = 8, gate_bias: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.gate = GatedResidual(width, gate_bias)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Slot features with all others mixed in."""
        placed = self.norm(x) + sinusoids(*x.shape[1:]).to(x)
        q, k, v = rearrange(self.qkv(placed), "b s (three h d) -> three b h s d", three=3, h=self.heads)
        return self.gate(x, self.output(rearrange(scaled_dot_product_attention(q, k, v), "b h s d -> b s (h d)")))


def sinusoids(steps: int, width: int) -> Float[Tensor, "S D"]:
    """Sines, then cosines, of t / 10000^(2 i / D) for i = 0, ..., D / 2 - 1."""
    rates = torch.exp(-math.log(10_000) * 2 / width * torch.arange(width // 2))
    angles = torch.arange(steps)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
