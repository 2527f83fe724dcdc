"""The ablation's selective adapter: Mamba's input-dependent scan where the paper's is time-invariant."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.models.mamba3dad.directions import both_ways
from anomaly3d.models.mamba3dad.gate import GatedResidual
from anomaly3d.ops.selective_scan import selective_scan


class SelectiveAdapter(nn.Module):
    """u = W_in x; Delta_t, B_t, C_t linear in u_t; q = W_out y of the selective scan of u; gated as the LTI adapter.

    The scan and its initial values are Mamba's (Gu and Dao, 2023): A = -(1, ..., N) in every channel, D = 1, step sizes
    from 0.001 to 0.1. Mamba's convolution and its multiplicative branch stay out, so that input dependence is what the
    ablation compares; nor is the state normalised, whose scale Delta controls. [ours]

    Args:
        width: channels of a slot (D in shapes).
        channels: channels that are scanned.
        state: width of every channel's state (N). [Mamba: 16]
        gate_bias: initial bias of the gate. [ours]
        bidirectional: average the scan with the same scan from the end. [inferred]
    """

    def __init__(
        self, width: int, channels: int, state: int = 16, gate_bias: float = 0.0, bidirectional: bool = False
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.widths = [step_rank(width), state, state]
        self.input = nn.Linear(width, channels, bias=False)
        self.select = nn.Linear(channels, sum(self.widths), bias=False)
        self.step = nn.Linear(step_rank(width), channels)
        self.log_a = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))
        self.skip = nn.Parameter(torch.ones(channels))
        self.output = nn.Linear(channels, width, bias=False)
        self.gate = GatedResidual(width, gate_bias)
        for matrix in (self.input, self.output):
            nn.init.kaiming_normal_(matrix.weight)
        nn.init.uniform_(self.step.weight, -(step_rank(width) ** -0.5), step_rank(width) ** -0.5)
        size = torch.exp(torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)))
        with torch.no_grad():
            self.step.bias.copy_(size.expm1().log())  # the inverse of softplus

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Slot features with what came before them mixed in; with what comes after, too, if bidirectional."""
        u = self.input(x)
        return self.gate(x, self.output(both_ways(self._scan, u) if self.bidirectional else self._scan(u)))

    def _scan(self, u: Float[Tensor, "B S E"]) -> Float[Tensor, "B S E"]:
        step, b, c = self.select(u).split(self.widths, dim=-1)
        return selective_scan(u, self.step(step), -self.log_a.exp(), b, c, self.skip)


def step_rank(width: int) -> int:
    """Rank of the map to the step sizes, a sixteenth of the width. [Mamba]"""
    return math.ceil(width / 16)
