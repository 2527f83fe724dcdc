"""Mamba's selective scan (Gu and Dao, 2023, Algorithm 2): a loop as specification, chunks in memory linear in T."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from anomaly3d.ops.backend import INSTALL, check_backend, find_package, log_choice, require_package
from anomaly3d.ops.precision import full_precision, no_autocast

BACKENDS = ("naive", "chunked", "mamba_ssm")

_CHUNK = 16  # steps whose states are kept at the same time; at Mamba3dAD's width they fit the cache of a CPU core
_KERNEL = "selective_scan_cuda"  # mamba-ssm's compiled part, which its newer builds leave out unless asked


def selective_scan(
    x: Float[Tensor, "B T D"],
    delta: Float[Tensor, "B T D"],
    a: Float[Tensor, "D N"],
    b: Float[Tensor, "B T N"],
    c: Float[Tensor, "B T N"],
    d: Float[Tensor, " D"],
    backend: str = "auto",
) -> Float[Tensor, "B T D"]:
    """y of h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t, y_t = C_t h_t + D x_t, with h_0 = 0.

    Every channel has a state of its own, of width N, and a diagonal A. Differentiable in all six tensors.

    Args:
        x: inputs.
        delta: step sizes before the softplus that makes them positive, their bias included.
        a: A, negative.
        b: B_t, shared by the channels.
        c: C_t, shared by the channels.
        d: D, the way around the state.
        backend: `naive` (the specification), `chunked` (plain torch, first derivatives), `mamba_ssm` (kernel of
            mamba-ssm, CUDA and float32 only) or `auto`: mamba_ssm on CUDA where it imports, chunked otherwise.

    Returns:
        Outputs in float32 (float64 for float64 inputs), whatever autocast says.

    Raises:
        ValueError: shapes that do not fit each other, or no steps.
        InputError: a backend that is unknown or missing.
    """
    check_backend("selective_scan", backend, BACKENDS)
    batch, steps, width = x.shape
    if steps == 0:
        raise ValueError(f"selective_scan of x {tuple(x.shape)}: no steps")
    expected = {"delta": (batch, steps, width), "a": (width, a.shape[-1]), "d": (width,)}
    expected |= dict.fromkeys(("b", "c"), (batch, steps, a.shape[-1]))
    for name, tensor in {"delta": delta, "a": a, "b": b, "c": c, "d": d}.items():
        if tensor.shape != expected[name]:
            raise ValueError(
                f"selective_scan of x {tuple(x.shape)}: {name} must be {expected[name]}, not {tuple(tensor.shape)}"
            )
    if backend == "auto":
        backend = _choose(x.device.type)
        log_choice("selective_scan", backend, x.device.type)
    with no_autocast(x):
        x, delta, a, b, c, d = map(full_precision, (x, delta, a, b, c, d))
        if backend == "mamba_ssm":
            return _mamba_ssm_scan(x, delta, a, b, c, d)
        if backend == "naive":
            return naive_selective_scan(x, delta, a, b, c, d)
        return _ChunkedScan.apply(x, softplus(delta), a, b, c) + d * x


def naive_selective_scan(
    x: Float[Tensor, "B T D"],
    delta: Float[Tensor, "B T D"],
    a: Float[Tensor, "D N"],
    b: Float[Tensor, "B T N"],
    c: Float[Tensor, "B T N"],
    d: Float[Tensor, " D"],
) -> Float[Tensor, "B T D"]:
    """The specification of `selective_scan`, one step after the other; autograd keeps several states per step."""
    h, outputs = x.new_zeros(len(x), *a.shape), []
    for x_t, delta_t, b_t, c_t in zip(x.unbind(1), softplus(delta).unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = torch.exp(delta_t[..., None] * a) * h + (delta_t * x_t)[..., None] * b_t[:, None]
        outputs.append(einsum(h, c_t, "b d n, b n -> b d") + d * x_t)
    return torch.stack(outputs, 1)


def _choose(device: str) -> str:
    if device != "cuda":
        return "chunked"
    if find_package(_KERNEL) is not None and find_package("mamba_ssm") is not None:
        return "mamba_ssm"
    warnings.warn(
        "selective_scan runs step by step on CUDA, many times slower than mamba-ssm's kernel, which is not installed "
        f"or does not import. Run: {INSTALL[_KERNEL]}",
        RuntimeWarning,
        stacklevel=3,
    )
    return "chunked"


def _mamba_ssm_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    for package in (_KERNEL, "mamba_ssm"):
        require_package(package, "selective_scan with backend='mamba_ssm'")
    kernel = import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    x, delta, b, c = (rearrange(tensor, "b t w -> b w t").contiguous() for tensor in (x, delta, b, c))
    return rearrange(kernel(x, delta, a, b, c, d, delta_softplus=True), "b d t -> b t d")


class _ChunkedScan(torch.autograd.Function):
    """C_t h_t, a chunk of steps at a time.

    Exponentials, products and sums are taken for a chunk at once, and each step is one fused multiply-add in place.
    Only the state before every chunk is kept; the way back computes the others again. Inside, time comes first and
    channels last, (T, B, N, D), so that every operation runs along contiguous channels. Sums of products are written
    out, several times faster here than the small matrix products that an einsum makes of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        a = a.mT.contiguous()
        h, starts, outputs = x.new_zeros(len(x), *a.shape), [], []
        for x_l, delta_l, b_l, c_l in _chunks(x, delta, b, c):
            starts.append(h)
            states, _ = _states(h, x_l, delta_l, a, b_l)
            h = states[-1].clone()  # not a view, which would keep the whole chunk
            outputs.append((c_l[..., None, :] @ states)[..., 0, :])
        ctx.save_for_backward(x, delta, a, b, c, *starts)
        return rearrange(torch.cat(outputs), "t b d -> b t d")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, delta, a, b, c, *starts = ctx.saved_tensors
        carry, grad_a, parts = torch.zeros_like(starts[0]), torch.zeros_like(a), []
        chunks = _chunks(x, delta, b, c, gradients[0])
        with no_autocast(x):
            for start, (x_l, delta_l, b_l, c_l, grad_y) in zip(reversed(starts), reversed(chunks), strict=True):
                states, decay = _states(start, x_l, delta_l, a, b_l)
                grad_c = (states * grad_y[..., None, :]).sum(-1)
                grad_h = c_l[..., None] * grad_y[..., None, :]  # to which each state adds what the next hands back
                for row, factor in zip(reversed(grad_h.unbind()), reversed(decay.unbind()), strict=True):
                    carry = row.add_(carry) * factor
                grad_b = (grad_h * (delta_l * x_l)[..., None, :]).sum(-1)
                grad_u = (b_l[..., None, :] @ grad_h)[..., 0, :]  # of Delta_t x_t
                # Of Delta_t A: the gradient of h_t times what is left in it of h_{t-1}.
                grad_exponent = grad_h.mul_(decay)
                grad_exponent[1:] *= states[:-1]
                grad_exponent[0] *= start
                grad_a += (grad_exponent * delta_l[..., None, :]).sum((0, 1))
                grad_delta = grad_u * x_l + (grad_exponent * a).sum(-2)
                parts.append((grad_u * delta_l, grad_delta, grad_b, grad_c))
        whole = (rearrange(torch.cat(part[::-1]), "t b w -> b t w") for part in zip(*parts, strict=True))
        grad_x, grad_delta, grad_b, grad_c = whole
        return grad_x, grad_delta, grad_a.mT, grad_b, grad_c


def _chunks(*tensors: Float[Tensor, "B T W"]) -> list[tuple[Float[Tensor, "L B W"], ...]]:
    in_time = (tensor.transpose(0, 1).contiguous().split(_CHUNK) for tensor in tensors)
    return list(zip(*in_time, strict=True))


def _states(
    start: Float[Tensor, "B N D"],
    x: Float[Tensor, "L B D"],
    delta: Float[Tensor, "L B D"],
    a: Float[Tensor, "N D"],
    b: Float[Tensor, "L B N"],
) -> tuple[Float[Tensor, "L B N D"], Float[Tensor, "L B N D"]]:
    """The states of a chunk, and the factors exp(Delta_t A)."""
    decay = (delta[..., None, :] * a).exp_()
    states = b[..., None] * (delta * x)[..., None, :]
    h = start
    for row, factor in zip(states.unbind(), decay.unbind(), strict=True):
        h = row.addcmul_(factor, h)
    return states, decay
