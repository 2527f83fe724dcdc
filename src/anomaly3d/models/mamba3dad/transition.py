"""A = s * orthogonal with a learnable s below one: the adapter's transition, literal and in its cheap basis."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import InputError
from anomaly3d.ops.precision import no_autocast
from anomaly3d.ops.scan import Rotation


class ScaledTransition(nn.Module):
    """The learnable factor s of A, the spectral norm of a scaled orthogonal matrix: limit * sigmoid(free parameter)."""

    def __init__(self, scale: float, max_norm: float) -> None:
        super().__init__()
        if not 0 < scale < max_norm < 1:
            raise InputError(
                f"state_scale={scale}: give one above 0 and below max_state_norm={max_norm}, itself below 1"
            )
        self.max_norm = max_norm
        self.raw_scale = nn.Parameter(torch.tensor(math.log(scale / (max_norm - scale))))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """s."""
        return self.max_norm * self.raw_scale.sigmoid()


class RotationTransition(ScaledTransition):
    """s times a block diagonal of 2 x 2 rotations, angles spread evenly over the circle as a random rotation's are."""

    def __init__(self, state: int, scale: float = 0.9, max_norm: float = 0.95) -> None:
        super().__init__(scale, max_norm)
        if state % 2:
            raise InputError(f"state={state}: transition rotation turns pairs of components; give an even number")
        self.angles = nn.Parameter(math.pi * (2 * torch.rand(state // 2) - 1))

    def forward(self) -> Rotation:
        """A, as its factor and angles."""
        return Rotation(self.scale, self.angles)


class DenseTransition(ScaledTransition):
    """s times a full orthogonal matrix of determinant 1.

    The matrix is `base` times the exponential of a skew-symmetric matrix whose upper triangle is the parameter: every
    step of an optimiser stays orthogonal, with no projection.
    """

    base: Float[Tensor, "S S"]

    def __init__(self, state: int, scale: float = 0.9, max_norm: float = 0.95) -> None:
        super().__init__(scale, max_norm)
        base, upper = torch.linalg.qr(torch.randn(state, state))
        base = base * upper.diagonal().sign()
        base[:, 0] *= torch.linalg.det(base).sign()
        self.register_buffer("base", base)
        self.skew = nn.Parameter(torch.zeros(state, state))

    def forward(self) -> Float[Tensor, "S S"]:
        """A, as a matrix."""
        with no_autocast(self.skew):
            upper = self.skew.triu(diagonal=1)
            return self.scale * (self.base @ torch.linalg.matrix_exp(upper - upper.mT))
