"""The gated residual that all adapters share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class GatedResidual(nn.Linear):
    """g * q + (1 - g) * x with g = sigmoid(W x + b): the adapter's output q and a way around it. [paper]

    Args:
        width: channels of a slot (D in shapes).
        bias: initial b, the same for every channel. [ours]
    """

    def __init__(self, width: int, bias: float = 0.0) -> None:
        super().__init__(width, width)
        nn.init.constant_(self.bias, bias)

    def forward(self, x: Float[Tensor, "B S D"], q: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Between x, where the gate is closed, and q, where it is open."""
        gate = super().forward(x).sigmoid()
        return gate * q + (1 - gate) * x
