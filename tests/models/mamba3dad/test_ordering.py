from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.models.mamba3dad.ordering import EPS, column_entropy, expected_slot, locality, row_distribution
from anomaly3d.ops.sinkhorn import sinkhorn


def some_plan(batch: int, tokens: int, slots: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sinkhorn(torch.randn(batch, tokens, slots, generator=generator, dtype=torch.float64))


def test_entropy_equals_loops_and_its_bounds() -> None:
    plan = some_plan(2, 6, 4)
    expected = np.mean([-sum(p * math.log(p) for p in plan[b, :, s].tolist()) for b in range(2) for s in range(4)])
    assert column_entropy(plan).item() == pytest.approx(expected, abs=1e-4)
    assert column_entropy(torch.full((1, 8, 5), 1 / 8)).item() == pytest.approx(math.log(8), abs=1e-4)
    assert column_entropy(torch.eye(5)[None]).item() == pytest.approx(0, abs=1e-5)


def test_entropy_gradient_is_that_of_p_log_p() -> None:
    plan = some_plan(2, 6, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(column_entropy(plan), plan)
    for b, t, s in np.ndindex(2, 6, 4):
        p = plan[b, t, s].item()
        slope = math.log(p + EPS) + p / (p + EPS)  # of p log(p + EPS); eight columns in all
        assert gradient[b, t, s].item() == pytest.approx(-slope / 8, rel=1e-6)


def test_entropy_has_a_finite_gradient_where_the_plan_is_zero() -> None:
    plan = torch.eye(5)[None].requires_grad_()
    column_entropy(plan).backward()
    assert plan.grad is not None
    assert plan.grad.isfinite().all()


def test_expected_slot_runs_from_zero_to_one() -> None:
    torch.testing.assert_close(expected_slot(torch.eye(5)[None]), torch.linspace(0, 1, 5)[None], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        row_distribution(some_plan(2, 6, 4)).sum(-1), torch.ones(2, 6).double(), atol=1e-5, rtol=0
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.floats(0.05, 2.0), st.booleans(), st.integers(0, 99))
def test_locality_equals_the_sum_over_all_token_pairs(
    layers: int, patches: int, slots: int, sigma: float, some_without_a_slot: bool, seed: int
) -> None:
    plan = some_plan(2, layers * patches, slots, seed).float()
    if some_without_a_slot:
        plan[torch.rand(plan.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.4] = 0
    centres = torch.randn(2, patches, 3, generator=torch.Generator().manual_seed(seed))
    expected = 0.0
    for b in range(2):
        positions = np.arange(slots) / (slots - 1)
        taken = [t for t in range(layers * patches) if plan[b, t].any()]
        mu = {t: (plan[b, t] / plan[b, t].sum()).double().numpy() @ positions for t in taken}
        total = 0.0
        for t in taken:
            for u in taken:
                p, q = centres[b, t % patches].numpy(), centres[b, u % patches].numpy()
                total += math.exp(-float(((p - q) ** 2).sum()) / sigma**2) * (mu[t] - mu[u]) ** 2
        expected += total / max(1, len(taken)) / 2
    assert locality(plan, centres, sigma).item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_locality_gradient_equals_that_of_the_pairwise_form() -> None:
    plan, centres = some_plan(2, 12, 5).float(), torch.randn(2, 4, 3)

    def pairwise(p: torch.Tensor) -> torch.Tensor:
        mu, where = expected_slot(p), centres.repeat(1, 3, 1)
        weight = torch.exp(-((where[:, :, None] - where[:, None]) ** 2).sum(-1) / 0.7**2)
        return (weight * (mu[:, :, None] - mu[:, None]) ** 2).sum((1, 2)).mean() / 12

    ours, theirs = plan.clone().requires_grad_(), plan.clone().requires_grad_()
    locality(ours, centres, 0.7).backward()
    pairwise(theirs).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_locality_vanishes_when_neighbours_share_their_place() -> None:
    centres = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [9, 0, 0], [9, 0, 0]]])
    plan = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    apart = plan[:, [0, 2, 1, 3]]
    assert locality(plan, centres).item() == pytest.approx(0, abs=1e-9)
    assert locality(apart, centres).item() == pytest.approx(1, abs=1e-4)
