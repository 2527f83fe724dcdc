"""Linear time-invariant scan h_t = A h_{t-1} + u_t: a loop as specification, a chunked form that is linear in T."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from anomaly3d.ops.precision import full_precision, no_autocast

_CHUNK = 16


@dataclass(frozen=True)
class Rotation:
    """A = scale * block diagonal of 2 x 2 rotations: state components 2i and 2i + 1 turn by `angles[i]` each step.

    Every scaled orthogonal matrix of positive determinant is one of these in some orthonormal basis, and a step
    costs O(S) instead of O(S^2).
    """

    scale: Float[Tensor, ""]
    angles: Float[Tensor, " S/2"]

    def eigenvalues(self) -> Complex[Tensor, " S/2"]:
        """scale * exp(i angle): the step of each pair of components, read as one complex number."""
        return torch.complex(self.scale * self.angles.cos(), self.scale * self.angles.sin())

    def dense(self) -> Float[Tensor, "S S"]:
        """The same transition as a matrix."""
        cos, sin = self.angles.cos(), self.angles.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return self.scale * torch.block_diag(*turn)


def lti_scan(u: Float[Tensor, "B T S"], transition: Float[Tensor, "S S"] | Rotation) -> Float[Tensor, "B T S"]:
    """The states h_1..h_T of h_t = A h_{t-1} + u_t with h_0 = 0; differentiable in u and the transition, any order.

    Cost and memory are linear in T. Chunks of 16 steps run side by side; the states at their ends are a scan
    of A^16 over the chunks. The gradient is the same scan backwards in time with A^T.

    Args:
        u: inputs projected to the state's width S (B x_t in the usual notation).
        transition: a matrix A, applied as A @ h, or a `Rotation`.

    Returns:
        States in float32 (float64 for float64 inputs), whatever autocast says.

    Raises:
        ValueError: the transition does not match the width of u, or u has no steps.
    """
    width = 2 * len(transition.angles) if isinstance(transition, Rotation) else len(transition)
    if u.ndim != 3 or u.shape[1] == 0 or u.shape[2] != width:
        raise ValueError(
            f"lti_scan of a state of width {width} needs u of shape (B, T >= 1, {width}), not {tuple(u.shape)}"
        )
    u = full_precision(u)
    if not isinstance(transition, Rotation):
        return _Scan.apply(u, full_precision(transition).mT)
    pairs = torch.view_as_complex(rearrange(u, "b t (s two) -> b t s two", two=2).contiguous())
    return rearrange(torch.view_as_real(_Scan.apply(pairs, transition.eigenvalues())), "b t s two -> b t (s two)")


def naive_lti_scan(u: Float[Tensor, "B T S"], matrix: Float[Tensor, "S S"]) -> Float[Tensor, "B T S"]:
    """The specification of `lti_scan`, one step after the other."""
    h, states = torch.zeros_like(u[:, 0]), []
    for step in u.unbind(1):
        h = h @ matrix.mT + step
        states.append(h)
    return torch.stack(states, 1)


class _Scan(torch.autograd.Function):
    """h_t = h_{t-1} a + u_t, with a matrix a for row vectors, or a vector of elementwise factors."""

    @staticmethod
    def forward(ctx: Any, u: Shaped[Tensor, "B T S"], a: Shaped[Tensor, "*S S"]) -> Shaped[Tensor, "B T S"]:
        with no_autocast(u):
            h = _states(u, a)
        ctx.save_for_backward(h, a)
        return h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        h, a = ctx.saved_tensors
        with no_autocast(h):
            grad_u = _Scan.apply(gradients[0].flip(1), a.mH if a.ndim == 2 else a.conj()).flip(1)
            before, after = h[:, :-1].flatten(0, 1), grad_u[:, 1:].flatten(0, 1)
            grad_a = before.mH @ after if a.ndim == 2 else (before.conj() * after).sum(0)
        return grad_u, grad_a


def _states(u: Shaped[Tensor, "B T S"], a: Shaped[Tensor, "*S S"]) -> Shaped[Tensor, "B T S"]:
    batch, steps, _ = u.shape
    size = _CHUNK if steps > 2 * _CHUNK else steps
    padded = F.pad(u, (0, 0, 0, -steps % size)) if steps % size else u
    # (size, chunks, B, S): a step of all chunks is one contiguous matrix. A copy, which becomes the states in place.
    states = padded.unflatten(1, (-1, size)).permute(2, 1, 0, 3).clone(memory_format=torch.contiguous_format)
    rows = states.flatten(1, 2).unbind(0)
    if size < steps:
        end = rows[0]  # each chunk's last state, had it started from zero
        for row in rows[1:]:
            end = torch.addmm(row, end, a) if a.ndim == 2 else torch.addcmul(row, end, a)
        power = torch.linalg.matrix_power(a, size) if a.ndim == 2 else a**size
        ends = _states(rearrange(end, "(chunk b) s -> b chunk s", b=batch), power)
        states[0, 1:] += _times(rearrange(ends[:, :-1], "b chunk s -> chunk b s"), a)
    for before, row in pairwise(rows):
        _ = row.addmm_(before, a) if a.ndim == 2 else row.addcmul_(before, a)
    return rearrange(states, "step chunk b s -> b (chunk step) s")[:, :steps]


def _times(h: Shaped[Tensor, "*batch S"], a: Shaped[Tensor, "*S S"]) -> Shaped[Tensor, "*batch S"]:
    return h @ a if a.ndim == 2 else h * a
