"""Attention to the visible patches, with positions added to what is compared and not to what is carried."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import check_heads
from anomaly3d.ops.grouping import gather_points


class MaskedAttention(nn.Module):
    """`softmax((Q W_q)(M + P)^T W_k^T / sqrt(d_head) + mask) M W_v`, the mask -inf for hidden keys and else 0.

    A key of -inf takes no part in the softmax: hidden ones are left out before it, which is the same, costs less and
    keeps the fused kernels, which a mask rules out. No dropout on the attention weights [ours; public code has 0.1]:
    drawing them takes most of a training step on a CPU.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(
        self,
        query: Float[Tensor, "B T W"],
        memory: Float[Tensor, "B G W"],
        position: Float[Tensor, "B G W"],
        visible: Int[Tensor, "B V"] | None = None,
    ) -> Float[Tensor, "B T W"]:
        """Attend from every query to the memory, or to what is `visible` of it."""
        keys, values = memory + position, memory
        if visible is not None:
            keys, values = gather_points(keys, visible), gather_points(values, visible)
        return self.attention(query, keys, values, need_weights=False)[0]


class FeedForward(nn.Module):
    """`ReLU(x W_1) W_2`, with dropout between."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*B W"]) -> Float[Tensor, "*B W"]:
        """The same for every token."""
        return self.narrow(self.dropout(F.relu(self.widen(x))))
