from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch.testing import assert_close

from anomaly3d.ops import sinkhorn as sinkhorn_module
from anomaly3d.ops.sinkhorn import sinkhorn


def affinity(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def reference(matrix: np.ndarray, tau: float, iterations: int) -> np.ndarray:
    tokens, slots = matrix.shape
    log_plan = (matrix - matrix.max(0)) / tau
    for _ in range(iterations):
        log_plan = log_plan - logsumexp(log_plan, axis=1, keepdims=True) + np.log(slots / tokens)
        log_plan = log_plan - logsumexp(log_plan, axis=0, keepdims=True)
    return np.exp(log_plan)


@pytest.mark.parametrize("method", ["log", "scaling", "auto"])
@pytest.mark.parametrize(("tokens", "slots"), [(12, 8), (8, 12), (10, 10), (1, 5), (5, 1)])
def test_matches_the_formula(method: str, tokens: int, slots: int) -> None:
    matrix = affinity(3, tokens, slots, dtype=torch.float64)
    plan = sinkhorn(matrix, 0.2, 8, method)  # pyright: ignore[reportArgumentType]
    for b in range(3):
        assert_close(plan[b].numpy(), reference(matrix[b].numpy(), 0.2, 8), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_scaling_agrees_with_log_space_in_float32(scale: float) -> None:
    matrix, weight = affinity(2, 96, 64, scale=scale), affinity(2, 96, 64, seed=1)
    results = []
    for method in ("log", "scaling"):
        leaf = matrix.clone().requires_grad_()
        plan = sinkhorn(leaf, method=method)
        (gradient,) = torch.autograd.grad((plan * weight).sum(), leaf)
        results.append((plan.detach(), gradient))
    (plan, gradient), (fast_plan, fast_gradient) = results
    assert_close(fast_plan, plan, rtol=1e-4, atol=1e-5)
    assert_close(fast_gradient, gradient, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("method", ["log", "scaling"])
@pytest.mark.parametrize("iterations", [1, 4])
def test_gradient_by_finite_differences(method: str, iterations: int) -> None:
    leaf = affinity(2, 6, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: sinkhorn(m, 0.5, iterations, method), leaf)  # pyright: ignore[reportArgumentType]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 20),
    slots=st.integers(1, 20),
    scale=st.sampled_from([0.0, 0.3, 3.0, 100.0, 1e4]),
    iterations=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_column_sums_are_one_whatever_the_spread(
    tokens: int, slots: int, scale: float, iterations: int, seed: int
) -> None:
    plan = sinkhorn(affinity(2, tokens, slots, seed=seed, scale=scale), iterations=iterations)
    assert plan.dtype == torch.float32
    assert plan.isfinite().all()
    assert (plan >= 0).all()
    assert_close(plan.sum(1), torch.ones(2, slots), rtol=1e-4, atol=1e-4)


def test_row_sums_converge_to_slots_over_tokens() -> None:
    plan = sinkhorn(affinity(1, 30, 12, dtype=torch.float64), iterations=2_000)
    assert_close(plan.sum(2), torch.full((1, 30), 12 / 30, dtype=torch.float64), rtol=1e-6, atol=0)
    assert_close(plan.sum(1), torch.ones(1, 12, dtype=torch.float64))


def test_a_constant_affinity_gives_the_uniform_plan() -> None:
    assert_close(sinkhorn(torch.full((1, 6, 4), 3.0)), torch.full((1, 6, 4), 1 / 6))


def test_permuting_tokens_and_slots_permutes_the_plan() -> None:
    matrix = affinity(1, 9, 7)
    rows, columns = torch.randperm(9), torch.randperm(7)
    assert_close(sinkhorn(matrix[:, rows][:, :, columns]), sinkhorn(matrix)[:, rows][:, :, columns])


@pytest.mark.parametrize(
    ("scale", "iterations", "method"),
    [
        (1.0, 8, "scaling"),
        (10.0, 8, "scaling in float64"),
        (1000.0, 8, "scaling in float64"),
        (10.0, 40, "log"),
    ],
)
def test_auto_follows_the_spread_and_the_iterations(
    scale: float, iterations: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    apply, log_space = sinkhorn_module._Scaling.apply, sinkhorn_module._log_space

    def scaling(logits: torch.Tensor, iterations: int) -> torch.Tensor:
        used.append("scaling" + " in float64" * (logits.dtype == torch.float64))
        return apply(logits, iterations)

    def log(logits: torch.Tensor, iterations: int) -> torch.Tensor:
        used.append("log")
        return log_space(logits, iterations)

    monkeypatch.setattr(sinkhorn_module._Scaling, "apply", scaling)
    monkeypatch.setattr(sinkhorn_module, "_log_space", log)
    matrix = affinity(1, 40, 30, scale=scale).requires_grad_()
    plan = sinkhorn(matrix, iterations=iterations)
    assert used == [method]
    assert_close(
        plan[0].detach().numpy(),
        reference(matrix[0].detach().double().numpy(), 0.2, iterations),
        check_dtype=False,
        rtol=1e-3,
        atol=1e-5,
    )
    (gradient,) = torch.autograd.grad(plan.square().sum(), matrix)
    exact = matrix.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(sinkhorn(exact, iterations=iterations, method="log").square().sum(), exact)
    assert_close(gradient, expected.float(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("tokens", "slots"), [(5001, 3), (3, 2049)])
def test_large_matrices_are_summed_in_float64(tokens: int, slots: int) -> None:
    matrix = affinity(1, tokens, slots)
    plan = sinkhorn(matrix)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, sinkhorn(matrix.double()).float())


def test_autocast_does_not_reach_the_plan() -> None:
    matrix = affinity(2, 20, 10).requires_grad_()
    plan = sinkhorn(matrix)
    (gradient,) = torch.autograd.grad(plan.square().sum(), matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = sinkhorn(matrix)
        (mixed_gradient,) = torch.autograd.grad(mixed.square().sum(), matrix)
    assert torch.equal(mixed, plan)
    assert torch.equal(mixed_gradient, gradient)
    assert sinkhorn(matrix.detach().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("matrix", "settings", "message"),
    [
        (torch.zeros(1, 2, 2), {"tau": 0.0}, "tau > 0"),
        (torch.zeros(1, 2, 2), {"iterations": 0}, "iterations >= 1"),
        (torch.zeros(1, 2, 2), {"method": "exp"}, "no method 'exp'"),
        (torch.zeros(1, 0, 2), {}, "empty"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), {}, "integer"),
        (torch.full((1, 2, 2), torch.nan), {}, "NaN"),
        (torch.tensor([[[0.0, torch.inf], [0.0, 0.0]]]), {}, "infinite"),
    ],
)
def test_bad_input_is_refused(matrix: torch.Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(matrix, **settings)
