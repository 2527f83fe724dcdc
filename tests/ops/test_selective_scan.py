from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus
from torch.testing import assert_close

from anomaly3d.errors import InputError
from anomaly3d.ops import selective_scan as module
from anomaly3d.ops.scan import lti_scan
from anomaly3d.ops.selective_scan import naive_selective_scan, selective_scan

LENGTHS = [1, 2, 15, 16, 17, 32, 100]


class Arguments(NamedTuple):
    x: torch.Tensor
    delta: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    d: torch.Tensor


def arguments(
    batch: int, steps: int, width: int, state: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    a = -3 * torch.rand(width, state, generator=generator, dtype=torch.float64).to(dtype)
    x, delta = normal(batch, steps, width), normal(batch, steps, width)
    b, c = normal(batch, steps, state), normal(batch, steps, state)
    return Arguments(*(t.requires_grad_() for t in (x, delta, a, b, c, normal(width))))


def numpy_scan(args: Arguments) -> np.ndarray:
    """The recurrence, one number after the other."""
    x, delta, a, b, c, d = (tensor.detach().numpy() for tensor in args)
    y = np.zeros_like(x)
    for batch in range(x.shape[0]):
        for channel in range(x.shape[2]):
            h = np.zeros(a.shape[1])
            for t in range(x.shape[1]):
                step = np.log1p(np.exp(delta[batch, t, channel]))
                h = np.exp(step * a[channel]) * h + step * b[batch, t] * x[batch, t, channel]
                y[batch, t, channel] = c[batch, t] @ h + d[channel] * x[batch, t, channel]
    return y


@pytest.mark.parametrize("backend", ["naive", "chunked"])
def test_is_the_recurrence(backend: str) -> None:
    args = arguments(2, 40, 3, 4)
    np.testing.assert_allclose(selective_scan(*args, backend=backend).detach().numpy(), numpy_scan(args), atol=1e-12)


@pytest.mark.parametrize("steps", LENGTHS)
def test_chunked_matches_naive_in_values_and_all_gradients(steps: int) -> None:
    weight = torch.randn(3, steps, 5, dtype=torch.float64)
    results = []
    for backend in ("naive", "chunked"):
        args = arguments(3, steps, 5, 4)
        y = selective_scan(*args, backend=backend)
        results.append((y, *torch.autograd.grad((y * weight).sum(), args)))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(
        lambda *args: selective_scan(*args, backend="chunked"), tuple(arguments(1, 19, 2, 2))
    )


def test_long_and_fast_decaying_sequences_stay_exact_in_float32() -> None:
    """Step sizes up to 30 and |A| up to 300: quotients of cumulated decays would overflow, products do not."""
    exact = arguments(1, 600, 4, 3)
    exact = exact._replace(delta=(10 * exact.delta).detach(), a=(100 * exact.a).detach())
    single = Arguments(*(tensor.detach().float() for tensor in exact))
    expected = naive_selective_scan(*exact)
    assert_close(selective_scan(*single, backend="chunked").double(), expected, rtol=1e-4, atol=1e-4)


def test_constant_steps_make_it_time_invariant() -> None:
    """With constant Delta, B and C each channel is an LTI system of transition diag(exp(Delta A))."""
    args = arguments(2, 50, 1, 3)
    delta, b, c = (t[:1, :1].detach().expand_as(t) for t in (args.delta, args.b, args.c))
    step = softplus(delta[0, 0, 0])
    states = lti_scan(step * b * args.x, torch.diag(torch.exp(step * args.a[0])))
    expected = (states * c).sum(-1, keepdim=True) + args.d * args.x
    assert_close(selective_scan(args.x, delta, args.a, b, c, args.d), expected)


def test_is_causal_and_batch_independent() -> None:
    args = arguments(2, 60, 3, 4)
    y = selective_scan(*args)
    later = args.x.detach().clone()
    later[0, 40:] += 1
    changed = selective_scan(later, *args[1:])
    assert torch.equal(changed[0, :40], y[0, :40])
    assert (changed[0, 40:] != y[0, 40:]).any()
    assert torch.equal(changed[1], y[1])
    alone = selective_scan(args.x[1:], args.delta[1:], args.a, args.b[1:], args.c[1:], args.d)
    assert_close(alone[0], y[1])


def test_equals_mambapy() -> None:
    """Another implementation of Mamba, values and gradients; its step sizes come after the softplus."""
    mamba = pytest.importorskip("mambapy.mamba")
    weight, results = torch.randn(2, 64, 6, dtype=torch.float64), []
    for ours in (True, False):
        args = arguments(2, 64, 6, 4)
        if ours:
            y = selective_scan(*args)
        else:
            x, delta, a, b, c, d = args
            y = mamba.MambaBlock.selective_scan(None, x, softplus(delta), a, b, c, d)
        results.append((y, *torch.autograd.grad((y * weight).sum(), args)))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_autocast_does_not_reach_the_states() -> None:
    args = arguments(2, 50, 4, 3, dtype=torch.float32)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = selective_scan(*args)
            results.append((y, *torch.autograd.grad(y.square().sum(), args)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
    assert selective_scan(args.x.bfloat16(), *args[1:]).dtype == torch.float32


def test_memory_is_linear_in_the_steps_and_holds_few_states() -> None:
    """Elements that the graph keeps: inputs, and one state per 16 steps, where the loop keeps several per step."""

    def kept(steps: int, backend: str) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            selective_scan(*arguments(1, steps, 8, 16), backend=backend)
        return total

    # x, delta, b and c once, a state of 8 x 16 per chunk; and softplus, D x and A.
    per_chunk = (kept(1_024, "chunked") - kept(512, "chunked")) / 32
    assert per_chunk <= 8 * 16 + 16 * (4 * 8 + 2 * 16)
    assert kept(1_024, "naive") > 10 * kept(1_024, "chunked")


def test_the_kernel_gets_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for mamba-ssm with its signature: channels before time, softplus inside."""

    def kernel(
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor,
        delta_softplus: bool,
    ) -> torch.Tensor:
        assert delta_softplus
        assert all(t.is_contiguous() for t in (u, delta, B, C))
        return naive_selective_scan(u.mT, delta.mT, A, B.mT, C.mT, D).mT

    for name in ("selective_scan_cuda", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        stand_in = ModuleType(name)
        stand_in.__spec__ = SimpleNamespace()  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, name, stand_in)
    sys.modules["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = kernel  # pyright: ignore[reportAttributeAccessIssue]
    args = arguments(2, 20, 3, 4)
    assert_close(selective_scan(*args, backend="mamba_ssm"), naive_selective_scan(*args))


def test_a_missing_kernel_is_named_and_missed_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mamba_ssm.*not installed.*pip install --no-build-isolation mamba-ssm"):
        selective_scan(*arguments(1, 4, 2, 2), backend="mamba_ssm")
    with pytest.warns(RuntimeWarning, match="many times slower.*mamba-ssm"):
        assert module._choose("cuda") == "chunked"
    assert module._choose("cpu") == "chunked"


def test_bad_input_is_refused() -> None:
    args = arguments(2, 5, 3, 4)
    with pytest.raises(InputError, match="no backend 'triton'"):
        selective_scan(*args, backend="triton")
    with pytest.raises(ValueError, match=r"b must be \(2, 5, 4\), not \(2, 5, 3\)"):
        selective_scan(*args._replace(b=args.b[..., :3]))
    with pytest.raises(ValueError, match="delta must be"):
        selective_scan(*args._replace(delta=args.delta[:, :4]))
    with pytest.raises(ValueError, match="no steps"):
        selective_scan(*arguments(1, 0, 2, 2))
