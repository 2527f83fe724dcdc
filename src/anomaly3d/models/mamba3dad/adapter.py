"""The state-space adapter of the paper: a linear time-invariant scan over the slots and a gated way around it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.models.mamba3dad.directions import both_ways
from anomaly3d.models.mamba3dad.gate import GatedResidual
from anomaly3d.models.mamba3dad.transition import DenseTransition, RotationTransition
from anomaly3d.ops.precision import full_precision, no_autocast
from anomaly3d.ops.scan import Rotation, lti_scan


class LTIAdapter(nn.Module):
    """h_t = A h_{t-1} + B x_t, q_t = C LN(h_t) + D x_t; output g * q + (1 - g) * x with g = sigmoid(W x + b).

    Args:
        width: channels of a slot (D in shapes).
        state: width of h. [paper]
        transition: `dense`, s times a full orthogonal matrix, is the literal form; `rotation`, its block-diagonal
            form in another basis, does the same at O(state) instead of O(state^2) a step. [inferred]
        state_norm: `readout` normalises the state where it is read, so the recurrence stays linear and runs in
            chunks; `recurrent` normalises what the next step sees too, one step after the other. [inferred]
        scale: initial s. [paper]
        max_norm: upper limit of s, the spectral norm of A. [paper]
        gate_bias: initial b of the gate. [ours]
        bidirectional: average C LN(h_t) with that of the same scan from the end. [inferred]
    """

    def __init__(
        self,
        width: int,
        state: int = 256,
        transition: Literal["rotation", "dense"] = "rotation",
        state_norm: Literal["readout", "recurrent"] = "readout",
        scale: float = 0.9,
        max_norm: float = 0.95,
        gate_bias: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.state_norm = state_norm
        form = {"rotation": RotationTransition, "dense": DenseTransition}[transition]
        self.transition = form(state, scale, max_norm)
        self.input = nn.Linear(width, state, bias=False)  # B
        self.output = nn.Linear(state, width, bias=False)  # C
        self.skip = nn.Linear(width, width, bias=False)  # D
        self.norm = nn.LayerNorm(state)
        self.gate = GatedResidual(width, gate_bias)
        for matrix in (self.input, self.output, self.skip):
            nn.init.kaiming_normal_(matrix.weight)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Slot features with what came before them mixed in; with what comes after, too, if bidirectional."""
        u = self.input(x)
        states = both_ways(self._normed_states, u) if self.bidirectional else self._normed_states(u)
        return self.gate(x, self.output(states) + self.skip(x))

    def _normed_states(self, u: Float[Tensor, "B S N"]) -> Float[Tensor, "B S N"]:
        transition = self.transition()
        if self.state_norm == "readout":
            return self.norm(lti_scan(u, transition))
        with no_autocast(u):
            u = full_precision(u)
            matrix = transition.dense() if isinstance(transition, Rotation) else transition
            h, states = torch.zeros_like(u[:, 0]), []
            for step in u.unbind(1):
                h = self.norm(h @ matrix.mT + step)
                states.append(h)
        return torch.stack(states, dim=1)
