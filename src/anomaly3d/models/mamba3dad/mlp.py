"""The ablation's MLP adapter: parameters, but no mixing of slots."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.models.mamba3dad.gate import GatedResidual


class MLPAdapter(nn.Module):
    """Two layers with GELU on every slot by itself, behind a norm, gated as the LTI adapter.

    Args:
        width: channels of a slot (D in shapes).
        hidden: channels between the layers.
        gate_bias: initial bias of the gate. [ours]
    """

    def __init__(self, width: int, hidden: int, gate_bias: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gate = GatedResidual(width, gate_bias)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Slot features, each changed by itself."""
        return self.gate(x, self.layers(x))
