from __future__ import annotations

import pytest
import torch
from written_out import written_out

from anomaly3d.models.mamba3dad.transition import DenseTransition, RotationTransition
from anomaly3d.ops.scan import Rotation


def matrix(transition: RotationTransition | DenseTransition) -> torch.Tensor:
    a = transition()
    return a.dense() if isinstance(a, Rotation) else a


@pytest.mark.parametrize("form", [RotationTransition, DenseTransition])
def test_is_scaled_orthogonal_within_the_limit_also_after_training(form: type) -> None:
    transition = form(8)
    a = matrix(transition)
    torch.testing.assert_close(a @ a.mT, 0.81 * torch.eye(8))
    assert torch.linalg.det(a) > 0

    target, optimiser = 3 * torch.randn(8, 8), torch.optim.Adam(transition.parameters(), lr=0.3)
    before = (matrix(transition) - target).square().sum().item()
    for _ in range(150):
        optimiser.zero_grad()
        loss = (matrix(transition) - target).square().sum()
        loss.backward()
        optimiser.step()
    a = matrix(transition).detach()
    scale = torch.linalg.matrix_norm(a, 2)
    assert loss.item() < before
    assert scale <= 0.95 + 1e-5
    torch.testing.assert_close(a @ a.mT, scale**2 * torch.eye(8), atol=1e-4, rtol=0)


def test_dense_built_from_rotation_is_the_same_matrix_with_the_same_gradients() -> None:
    rotation = RotationTransition(6, scale=0.8, max_norm=0.85)  # below the default scale
    dense = written_out(rotation)
    torch.testing.assert_close(matrix(dense), matrix(rotation), atol=1e-6, rtol=0)
    weight = torch.randn(6, 6)
    (matrix(rotation) * weight).sum().backward()
    (matrix(dense) * weight).sum().backward()
    torch.testing.assert_close(dense.raw_scale.grad, rotation.raw_scale.grad)
    assert dense.skew.grad is not None
    pairs = torch.stack([dense.skew.grad[2 * i, 2 * i + 1] for i in range(3)])
    torch.testing.assert_close(-pairs, rotation.angles.grad)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"state=5: .*even"):
        RotationTransition(5)
    with pytest.raises(ValueError, match=r"state_scale=0\.96: .*max_state_norm=0\.95"):
        DenseTransition(4, scale=0.96, max_norm=0.95)
