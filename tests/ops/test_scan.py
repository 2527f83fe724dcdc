from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.signal import lfilter
from torch.testing import assert_close

from anomaly3d.ops.scan import Rotation, lti_scan, naive_lti_scan

LENGTHS = [1, 2, 16, 31, 32, 33, 48, 100, 700]


def inputs(batch: int, steps: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, steps, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(width: int, scale: float = 0.9, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    q = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q
    return (q * scale).to(dtype)


def rotation(width: int, scale: float = 0.9, dtype: torch.dtype = torch.float64) -> Rotation:
    angles = torch.rand(width // 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 6
    return Rotation(torch.tensor(scale, dtype=dtype).requires_grad_(), angles.to(dtype).requires_grad_())


def test_naive_is_the_recurrence() -> None:
    u, a = inputs(2, 20, 5), orthogonal(5)
    states = naive_lti_scan(u, a).numpy()
    for b in range(2):
        h = np.zeros(5)
        for t in range(20):
            h = a.numpy() @ h + u[b, t].numpy()
            assert_close(states[b, t], h)


@pytest.mark.parametrize("steps", LENGTHS)
def test_dense_matches_naive_in_values_and_gradients(steps: int) -> None:
    weight = inputs(3, steps, 6, seed=1)
    results = []
    for scan in (naive_lti_scan, lti_scan):
        u, a = inputs(3, steps, 6).requires_grad_(), orthogonal(6).requires_grad_()
        h = scan(u, a)
        results.append((h, *torch.autograd.grad((h * weight).sum(), (u, a))))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("steps", LENGTHS)
def test_rotation_matches_the_dense_matrix_built_from_it(steps: int) -> None:
    weight = inputs(3, steps, 6, seed=1)
    results = []
    for dense in (True, False):
        u, a = inputs(3, steps, 6).requires_grad_(), rotation(6)
        h = naive_lti_scan(u, a.dense()) if dense else lti_scan(u, a)
        results.append((h, *torch.autograd.grad((h * weight).sum(), (u, a.scale, a.angles))))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["dense", "rotation"])
def test_float32_at_the_real_size(kind: str) -> None:
    u = inputs(1, 1536, 64, dtype=torch.float32).requires_grad_()
    exact = u.detach().double().requires_grad_()
    if kind == "dense":
        transition = orthogonal(64, 0.95, torch.float32)
        matrix = transition.double()
    else:
        transition = rotation(64, 0.95, torch.float32)
        matrix = Rotation(transition.scale.double(), transition.angles.double()).dense()
    found, expected = lti_scan(u, transition), naive_lti_scan(exact, matrix)
    assert_close(found, expected.float(), rtol=1e-5, atol=2e-5)
    gradients = [torch.autograd.grad(h.square().mean(), leaf)[0] for h, leaf in ((found, u), (expected, exact))]
    assert_close(gradients[0], gradients[1].float(), rtol=1e-4, atol=1e-7)


def test_a_scalar_transition_is_an_infinite_impulse_response_filter() -> None:
    u = inputs(1, 500, 1)
    expected = lfilter([1.0], [1.0, -0.8], u[0, :, 0].numpy())
    assert_close(lti_scan(u, torch.tensor([[0.8]], dtype=torch.float64))[0, :, 0].numpy(), expected)


def test_an_impulse_turns_and_decays() -> None:
    u = torch.zeros(1, 90, 2)
    u[0, 0, 0] = 1
    h = lti_scan(u, Rotation(torch.tensor(0.97), torch.tensor([0.3])))
    t = torch.arange(90)
    assert_close(
        h[0], 0.97 ** t[:, None] * torch.stack([torch.cos(0.3 * t), torch.sin(0.3 * t)], 1), rtol=1e-4, atol=1e-6
    )


def test_rotation_is_a_scaled_orthogonal_matrix_of_blocks() -> None:
    transition = rotation(6)
    scale, angles = transition.scale.item(), transition.angles.tolist()
    blocks = [scale * np.array([[np.cos(x), -np.sin(x)], [np.sin(x), np.cos(x)]]) for x in angles]
    assert_close(transition.dense().detach().numpy(), block_diag(*blocks))
    values = torch.linalg.eigvals(transition.dense()).detach()
    pairs = transition.eigenvalues().detach()
    # Conjugate pairs: every eigenvalue found is one of those, or the conjugate of one.
    distance = (values[:, None] - torch.cat([pairs, pairs.conj()])).abs()
    assert distance.amin(0).max() < 1e-12
    assert distance.amin(1).max() < 1e-12


def test_is_linear_and_causal() -> None:
    u, v, a = inputs(1, 70, 4), inputs(1, 70, 4, seed=1), orthogonal(4)
    assert_close(lti_scan(2 * u - v, a), 2 * lti_scan(u, a) - lti_scan(v, a))
    later = u.clone()
    later[:, 40:] += 1
    assert torch.equal(lti_scan(later, a)[:, :40], lti_scan(u, a)[:, :40])
    assert_close(lti_scan(u[:, :50], a), lti_scan(u, a)[:, :50])


@pytest.mark.parametrize("kind", ["dense", "rotation"])
def test_first_and_second_derivatives_by_finite_differences(kind: str) -> None:
    u = inputs(1, 35, 2).requires_grad_()
    if kind == "dense":
        arguments = (u, orthogonal(2).requires_grad_())
    else:
        transition = rotation(2)
        arguments = (u, transition.scale, transition.angles)

    def scan(u: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        return lti_scan(u, parts[0] if kind == "dense" else Rotation(*parts))

    assert torch.autograd.gradcheck(scan, arguments)
    assert torch.autograd.gradgradcheck(scan, arguments)


def test_inputs_are_left_alone() -> None:
    """A batch of one, where the chunks are a view of the input."""
    for steps in (5, 32, 64):
        u = inputs(1, steps, 4)
        before = u.clone()
        lti_scan(u, orthogonal(4))
        assert torch.equal(u, before)


def test_autocast_does_not_reach_the_states() -> None:
    u, a = inputs(2, 50, 8, dtype=torch.float32).requires_grad_(), orthogonal(8, dtype=torch.float32).requires_grad_()
    h = lti_scan(u, a)
    gradients = torch.autograd.grad(h.square().sum(), (u, a))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = lti_scan(u, a)
        mixed_gradients = torch.autograd.grad(mixed.square().sum(), (u, a))
    for expected, found in zip((h, *gradients), (mixed, *mixed_gradients), strict=True):
        assert torch.equal(found, expected)
    assert lti_scan(u.detach().bfloat16(), a).dtype == torch.float32


def test_memory_is_linear_in_the_steps() -> None:
    """Bytes that the graph keeps, by the hooks of autograd: no T x T matrix and no state saved twice."""

    def kept(steps: int) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            lti_scan(inputs(1, steps, 8).requires_grad_(), orthogonal(8).requires_grad_())
        return total

    assert kept(2_048) == 2_048 * 8 + 64


@pytest.mark.parametrize("shape", [(1, 0, 4), (1, 5, 3), (5, 4)])
def test_bad_input_is_refused(shape: tuple[int, ...]) -> None:
    for transition in (orthogonal(4), rotation(4)):
        with pytest.raises(ValueError, match="width 4"):
            lti_scan(torch.zeros(shape), transition)
