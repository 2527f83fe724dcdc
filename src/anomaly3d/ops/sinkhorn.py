"""Entropic optimal transport on a rectangular matrix: log-space specification and scaling vectors."""

from __future__ import annotations

from math import isfinite, log
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from anomaly3d.ops.precision import full_precision, no_autocast

Method = Literal["auto", "scaling", "log"]

_MAX_SPREAD = 60.0
"""Largest range of log affinities for float32: within it exp(), and products of two scalings, stay normal numbers."""
_MAX_GROWTH = 200.0
"""Largest logarithm of a scaling for float64: products of three stay within its numbers, which reach exp(709)."""


def sinkhorn(
    affinity: Float[Tensor, "B T S"],
    tau: float = 0.2,
    iterations: int = 8,
    method: Method = "auto",
) -> Float[Tensor, "B T S"]:
    """Transport plan of exp(affinity / tau): column sums are 1, row sums S / T at convergence.

    A T x S matrix with T != S cannot be doubly stochastic; these are the only consistent uniform sums with columns of
    1. Each iteration scales the rows, then the columns, so the column sums are exact after any number of iterations.

    Args:
        affinity: similarity of T tokens and S slots.
        tau: temperature > 0 [paper: 0.2].
        iterations: row and column steps [paper: 8].
        method: `log` (the specification; any spread), `scaling` (one exp, then two vectors; about ten times faster
            with its gradient, differentiable once) or `auto`: scaling, in float64 where the spread of the affinities
            asks for it (finding out waits for the device), and log where even that could overflow.

    Returns:
        The plan in float32 (float64 for a float64 affinity). Sums run in float64 when T > 5000 or S > 2048 [paper].

    Raises:
        ValueError: tau or iterations out of range, an empty matrix, an unknown method; with `auto`, which looks at the
            entries, a non-finite one.
    """
    if not tau > 0 or iterations < 1:
        raise ValueError(f"sinkhorn needs tau > 0 and iterations >= 1, not {tau} and {iterations}")
    if method not in get_args(Method):
        raise ValueError(f"sinkhorn has no method {method!r}: use auto, scaling or log")
    if affinity.numel() == 0 or not affinity.is_floating_point():
        raise ValueError(f"sinkhorn of an empty or integer matrix: {affinity.dtype}, {tuple(affinity.shape)}")
    affinity = full_precision(affinity)
    dtype = affinity.dtype
    if affinity.shape[1] > 5000 or affinity.shape[2] > 2048:
        affinity = affinity.double()
    with no_autocast(affinity):
        logits = affinity / tau
        logits = logits - logits.amax(1, keepdim=True)
        # A constant added to a row changes nothing; with both maxima gone every row and column keeps a 0, and no sum of
        # exponentials vanishes.
        logits = logits - logits.detach().amax(2, keepdim=True)
        if method == "auto":
            method, logits = _choose(logits, iterations)
        plan = _log_space(logits, iterations) if method == "log" else _Scaling.apply(logits, iterations)
    return plan.to(dtype)


def _choose(logits: Tensor, iterations: int) -> tuple[Literal["scaling", "log"], Tensor]:
    spread = -logits.detach().amin().item()
    if not isfinite(spread):
        raise ValueError("sinkhorn of an affinity with NaN or infinite entries")
    if spread <= _MAX_SPREAD:
        return "scaling", logits
    # Every row and column keeps a 0, so its sum is at least the other scaling's smallest entry: logarithms of the
    # scalings grow by at most this much in an iteration. An entry too small for exp(), below -745, becomes 0 in the
    # plan; the exact one is below exp(-745 + 2 * 200).
    growth = log(logits.shape[1]) + log(logits.shape[2]) + abs(log(logits.shape[2] / logits.shape[1]))
    if iterations * growth <= _MAX_GROWTH:
        return "scaling", logits.double()
    return "log", logits


def _log_space(logits: Float[Tensor, "B T S"], iterations: int) -> Float[Tensor, "B T S"]:
    row_sum = logits.new_tensor(logits.shape[2] / logits.shape[1]).log()
    for _ in range(iterations):
        logits = logits - logits.logsumexp(2, keepdim=True) + row_sum
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


class _Scaling(torch.autograd.Function):
    """plan = diag(u) exp(logits) diag(v); u and v alternately set the row and the column sums.

    The unrolled iterations are differentiated exactly, from one matrix and the vectors of each iteration: each step
    adds an outer product to the kernel's gradient, and all of them are one matrix product.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, iterations: int) -> Tensor:
        kernel = logits.exp()
        row_sum = logits.shape[2] / logits.shape[1]
        v = torch.ones_like(kernel[:, 0])
        us, vs = [], [v]
        for _ in range(iterations):
            us.append(row_sum / _times(kernel, vs[-1]))
            vs.append(1 / _times(kernel.mT, us[-1]))
        ctx.save_for_backward(kernel, torch.stack(us, 1), torch.stack(vs, 1))
        return us[-1][:, :, None] * kernel * vs[-1][:, None, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        kernel, us, vs = ctx.saved_tensors
        us, vs = us.unbind(1), vs.unbind(1)
        row_sum = kernel.shape[2] / kernel.shape[1]
        with no_autocast(kernel):
            outer = gradients[0] * kernel  # the plan is kernel * outer(u, v)
            grad_u, grad_v = _times(outer, vs[-1]), _times(outer.mT, us[-1])
            left, right = [], []
            for u, v, v_before in zip(us[::-1], vs[:0:-1], vs[-2::-1], strict=True):
                grad_kv = -(grad_v * v) * v  # of kernel^T u, from v = 1 / (kernel^T u)
                grad_u = grad_u + _times(kernel, grad_kv)
                grad_ku = -(grad_u * u) * u / row_sum  # of kernel v_before, from u = row_sum / (kernel v_before)
                grad_v, grad_u = _times(kernel.mT, grad_ku), 0
                left += [u, grad_ku]
                right += [grad_kv, v_before]
            outer *= us[-1][:, :, None] * vs[-1][:, None, :]
            return outer.add_(kernel * _sum_of_outer(left, right)), None


def _times(matrix: Float[Tensor, "B T S"], vector: Float[Tensor, "B S"]) -> Float[Tensor, "B T"]:
    if matrix.is_cuda:  # a product could run in TensorFloat-32, whose three digits would show in the sums
        return (matrix * vector[:, None, :]).sum(2)
    return (matrix @ vector[:, :, None])[:, :, 0]


def _sum_of_outer(left: list[Tensor], right: list[Tensor]) -> Float[Tensor, "B T S"]:
    if not left[0].is_cuda:
        return torch.stack(left, 2) @ torch.stack(right, 1)
    total = left[0][:, :, None] * right[0][:, None, :]
    for a, b in zip(left[1:], right[1:], strict=True):
        total.addcmul_(a[:, :, None], b[:, None, :])
    return total
