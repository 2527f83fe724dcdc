"""A result is computed once per content, and never for another content."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly3d.models.components.cache import FrozenCache


def test_once_per_content_within_the_limit() -> None:
    calls: list[Tensor] = []

    def double(cloud: Tensor) -> tuple[Tensor]:
        calls.append(cloud)
        return (2 * cloud,)

    def ask(cache: FrozenCache[tuple[Tensor]], cloud: Tensor) -> None:
        assert torch.equal(cache(cloud, lambda: double(cloud))[0], 2 * cloud)

    cloud, other = torch.randn(100, 3), torch.randn(100, 3)
    room_for_one = FrozenCache[tuple[Tensor]](1.5 * cloud.nbytes / 2**30)
    ask(room_for_one, cloud)
    ask(room_for_one, cloud.clone())  # the same content
    assert len(calls) == 1
    changed = cloud.clone()
    changed[50, 1] += 1e-3
    ask(room_for_one, changed)  # no room for it, and not mistaken for the first
    ask(room_for_one, changed)
    assert len(calls) == 3
    ask(room_for_one, cloud)
    assert len(calls) == 3

    calls.clear()
    none = FrozenCache[tuple[Tensor]](0)
    ask(none, other)
    ask(none, other)
    assert len(calls) == 2
