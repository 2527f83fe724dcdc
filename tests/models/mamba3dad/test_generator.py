from __future__ import annotations

import pytest
import torch

from anomaly3d.models.mamba3dad.generator import AnomalyGenerator


def test_noise_is_gamma_sigma_on_the_labelled_slots_and_nowhere_else() -> None:
    generator = AnomalyGenerator(gamma=12.0)
    q = torch.randn(8, 1000, 32)
    noisy, labels = generator(q)
    assert labels.mean().item() == pytest.approx(0.05, abs=0.01)
    assert torch.equal(noisy[labels == 0], q[labels == 0])
    noise = (noisy - q)[labels == 1]
    assert noise.std().item() == pytest.approx(12.0 * 0.05, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert (noise.abs().amax(dim=1) > 0).all()


def test_a_mask_per_patch_is_passed_on_through_the_shares_and_scales_the_noise() -> None:
    generator, q = AnomalyGenerator(0.3, gamma=12.0), torch.zeros(4, 6, 5000)
    shares = torch.rand(4, 3, 6).softmax(dim=1)
    noisy, labels = generator(q, shares)
    for b in range(4):
        # Three mask bits make eight possible rows of labels; it must be one of them.
        rows = [shares[b].T @ torch.tensor([float(i & 1), float(i >> 1 & 1), float(i >> 2)]) for i in range(8)]
        assert min((labels[b] - row).abs().max().item() for row in rows) < 1e-6
    torch.testing.assert_close(noisy.std(dim=2), 12.0 * 0.05 * labels, rtol=0.1, atol=1e-6)


def test_passes_features_unchanged_in_evaluation() -> None:
    generator, q = AnomalyGenerator(gamma=5.0).eval(), torch.randn(2, 100, 8)
    noisy, labels = generator(q)
    assert torch.equal(noisy, q)
    assert not labels.any()


@pytest.mark.parametrize(("gamma", "start"), [(0.05, 0.1), (1.0, 1.0), (7.0, 7.0), (90.0, 20.0)])
def test_gamma_starts_where_it_should(gamma: float, start: float) -> None:
    assert AnomalyGenerator(gamma=gamma, gamma_range=(0.1, 20.0)).gamma.item() == pytest.approx(start, rel=1e-4)


def test_gamma_leaves_the_end_it_starts_at() -> None:
    generator = AnomalyGenerator(gamma_range=(1.0, 2.0))
    for sign, expected in ((1, 2.0), (-1, 1.0)):
        optimiser = torch.optim.SGD(generator.parameters(), lr=0.05)
        for _ in range(60):
            optimiser.zero_grad()
            (-sign * generator.gamma).backward()
            optimiser.step()
        assert generator.gamma.item() == pytest.approx(expected)


def test_gamma_is_learned_and_held_by_its_range() -> None:
    generator = AnomalyGenerator(gamma=0.5, gamma_range=(0.1, 0.8))
    optimiser = torch.optim.SGD(generator.parameters(), lr=0.1)
    q = torch.zeros(1, 2000, 8)
    values = []
    for _ in range(500):  # a discriminator that sees the noise's size would be paid for a larger gamma
        optimiser.zero_grad()
        noisy, _ = generator(q)
        (-noisy.square().mean() * 1000).backward()
        optimiser.step()
        values.append(generator.gamma.item())
    assert values[0] > 0.5
    assert values[-1] == pytest.approx(0.8)


def test_gradient_of_gamma_equals_finite_differences() -> None:
    generator, q, weight = AnomalyGenerator(gamma=12.0), torch.randn(1, 500, 4), torch.randn(1, 500, 4)

    def value() -> torch.Tensor:
        torch.manual_seed(3)
        return (generator(q).features.square() * weight).sum()

    value().backward()
    gradient = generator.raw_gamma.grad
    assert gradient is not None
    with torch.no_grad():
        generator.raw_gamma.add_(0.01)
        up = value()
        generator.raw_gamma.sub_(0.02)
        down = value()
    assert gradient.item() == pytest.approx((up - down).item() / 0.02, rel=0.02)
