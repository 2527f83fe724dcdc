"""How geometry reaches the decoder's attention (Table 6): as a bias of logits, a mask of keys or a gate of values."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_choice

Injection = Literal["bias", "masking", "gating", "none"]

_HIDDEN = -1e4  # the exponential of such a logit is exactly zero, and no gradient becomes NaN, as it would from -inf


class Guidance(NamedTuple):
    """What geometry does to patches as keys, the same for all queries and heads; None for nothing."""

    bias: Float[Tensor, "B G"] | None = None  # added to the logits
    gate: Float[Tensor, "B G"] | None = None  # multiplies the values


class GeometryGuidance(nn.Module):
    """From the geometric descriptor h of each patch to its guidance.

    Args:
        injection: `bias` adds `beta * MLP(h)`, one learned scalar per patch, to its logits [paper]. The other rows of
            Table 6 have no equations there [ours]: `masking` hides the patches where the surface varies least
            (smallest sum of h), `gating` multiplies a patch's values by `sigmoid(beta * MLP(h))`; `none` does nothing.
        hidden: channels inside the MLP [ours].
        beta: initial value of the learnable strength [inferred].
        masked: share of patches that `masking` hides [ours: as many as MC3D-AD masks].
    """

    def __init__(self, injection: Injection = "bias", hidden: int = 32, beta: float = 1.0, masked: float = 0.4) -> None:
        super().__init__()
        check_choice(get_args(Injection), geometry=injection)
        self.injection: Injection = injection
        self.masked = masked
        if injection in ("bias", "gating"):
            # No constant at the end of a bias: the softmax over the keys cancels what is common to all of them.
            self.mlp = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=injection == "gating"))
            self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, descriptor: Float[Tensor, "B G 2"]) -> Guidance:
        """The guidance of every patch."""
        if self.injection == "bias":
            return Guidance(bias=self.beta * self.mlp(descriptor).squeeze(-1))
        if self.injection == "gating":
            return Guidance(gate=(self.beta * self.mlp(descriptor).squeeze(-1)).sigmoid())
        if self.injection == "masking":
            ranks = descriptor.sum(-1).argsort(dim=1, stable=True).argsort(dim=1)
            return Guidance(bias=_HIDDEN * (ranks < int(self.masked * descriptor.shape[1])))
        return Guidance()
