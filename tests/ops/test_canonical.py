from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.ops.canonical import canonical_order, canonical_order_torch


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([-1.5, -0.0, 0.0, 0.25, 3.0])] * 3), min_size=1, max_size=80))
def test_sorts_like_tuples_and_keeps_the_order_of_equals(points: list) -> None:
    expected = sorted(range(len(points)), key=lambda i: (*points[i], i))
    xyz = torch.tensor(points, dtype=torch.float32)
    assert canonical_order(xyz).tolist() == expected
    assert canonical_order_torch(xyz).tolist() == expected


def test_the_same_points_in_any_order_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    xyz = (torch.randn(5_000, 3, generator=generator) * 20).round() / 20
    shuffled = xyz[torch.randperm(5_000, generator=generator)]
    assert torch.equal(xyz[canonical_order(xyz)], shuffled[canonical_order(shuffled)])


def test_both_paths_agree_where_few_points_tie() -> None:
    xyz = torch.rand(50_000, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(canonical_order(xyz), canonical_order_torch(xyz))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        canonical_order(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="NaN"):
        canonical_order(torch.tensor([[0.0, torch.nan, 0.0]]))
