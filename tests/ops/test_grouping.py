from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import as_tensor
from torch.testing import assert_close

from anomaly3d.ops.grouping import gather_points, interpolate


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4), (0,)])
def test_gather_is_indexing_per_cloud(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 11, 5, generator=generator)
    index = torch.randint(11, (3, *shape), generator=generator)
    expected = torch.stack([features[b][index[b]] for b in range(3)])
    assert torch.equal(gather_points(features, index), expected)


def test_gather_keeps_the_type_and_its_gradient_counts_uses() -> None:
    assert gather_points(torch.arange(6).reshape(1, 3, 2), torch.tensor([[2, 0]])).tolist() == [[[4, 5], [0, 1]]]
    features = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 0, 3], [1, 2, 2]])
    assert torch.autograd.gradcheck(lambda f: gather_points(f, index), features)
    gather_points(features, index).sum().backward()
    assert features.grad is not None
    assert features.grad[..., 0].tolist() == [[2, 0, 0, 1], [0, 1, 2, 0]]


def test_gather_never_reads_the_next_cloud() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        gather_points(torch.zeros(2, 4, 3), torch.tensor([[4], [0]]))


def reference(values: np.ndarray, source: np.ndarray, target: np.ndarray, k: int, power: int = 1) -> np.ndarray:
    result = []
    for point in target.astype(np.float64):
        distance = np.linalg.norm(source - point, axis=1)
        near = np.argsort(distance, kind="stable")[:k]
        result.append(np.average(values[near], weights=1 / distance[near] ** power))
    return np.array(result)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_inverse_distance_matches_the_formula(k: int, power: int) -> None:
    rng = np.random.default_rng(k)
    values, source, target = rng.random(30), rng.random((30, 3)), rng.random((200, 3))
    found = interpolate(as_tensor(values), as_tensor(source), as_tensor(target), "inverse_distance", k, power)
    assert_close(found.numpy(), reference(values, source, target, k, power), rtol=1e-12, atol=0)


def test_nearest_takes_one_value() -> None:
    rng = np.random.default_rng(0)
    values, source, target = rng.random(30), rng.random((30, 3)), rng.random((200, 3))
    found = interpolate(as_tensor(values), as_tensor(source), as_tensor(target), "nearest")
    expected = values[np.linalg.norm(target[:, None] - source, axis=-1).argmin(1)]
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e15])
def test_a_target_on_a_source_has_its_value_in_any_unit(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values, source = torch.rand(20, generator=generator), torch.rand(20, 3, generator=generator)
    assert_close(interpolate(values, source * scale, source * scale), values)
    target = torch.rand(50, 3, generator=generator)
    assert_close(
        interpolate(values, source * scale, target * scale), interpolate(values, source, target), rtol=1e-4, atol=1e-6
    )


def test_a_constant_stays_constant_and_no_value_leaves_the_range() -> None:
    generator = torch.Generator().manual_seed(1)
    source, target = torch.rand(20, 3, generator=generator), torch.rand(300, 3, generator=generator) * 5
    assert_close(interpolate(torch.full((20,), 0.3), source, target), torch.full((300,), 0.3))
    values = torch.rand(20, generator=generator)
    found = interpolate(values, source, target)
    assert found.min() >= values.min() - 1e-6
    assert found.max() <= values.max() + 1e-6


def test_degenerate_sources() -> None:
    target = torch.rand(10, 3, generator=torch.Generator().manual_seed(2))
    assert_close(interpolate(torch.tensor([2.0]), torch.zeros(1, 3), target), torch.full((10,), 2.0))
    coincident = interpolate(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3, 3), torch.zeros(1, 3))
    assert_close(coincident, torch.tensor([3.0]))


def test_gradient_reaches_the_values() -> None:
    generator = torch.Generator().manual_seed(3)
    source, target = torch.rand(8, 3, generator=generator), torch.rand(12, 3, generator=generator)
    values = torch.rand(8, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: interpolate(v, source.double(), target.double()), values)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no method 'linear'"):
        interpolate(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 3), "linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="3 sources"):
        interpolate(torch.zeros(2), torch.zeros(3, 3), torch.zeros(2, 3))
