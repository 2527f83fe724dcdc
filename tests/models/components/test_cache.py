"""A result is computed once per content, and never for another content."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from anomaly3d.models.components.cache import FrozenCache


def test_once_per_content_within_the_limit() -> None:
    calls: list[Tensor] = []

    def double(cloud: Tensor) -> tuple[Tensor]:
        calls.append(cloud)
        return (2 * cloud,)

    def ask(cache: FrozenCache[tuple[Tensor]], cloud: Tensor) -> None:
        assert torch.equal(cache(cloud, lambda: double(cloud))[0], 2 * cloud)

    cloud, other = torch.randn(100, 3), torch.randn(100, 3)
    room_for_one = FrozenCache[tuple[Tensor]](1.5 * cloud.nbytes / 2**30, list)
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
    none = FrozenCache[tuple[Tensor]](0, list)
    ask(none, other)
    ask(none, other)
    assert len(calls) == 2


def test_other_weights_precision_or_variant_never_meet_a_stale_result() -> None:
    layer = nn.Linear(3, 4)
    cache, cloud = FrozenCache[tuple[Tensor]](1.0, lambda: [layer]), torch.randn(10, 3)
    asked: list[int] = []

    @torch.no_grad()
    def ask(variant: int = 0) -> Tensor:
        def compute() -> tuple[Tensor]:
            asked.append(variant)
            return (layer(cloud) + variant,)

        return cache(cloud, compute, variant)[0]

    first = ask()
    assert ask() is first
    with torch.autocast("cpu", torch.bfloat16):
        assert ask().dtype == torch.bfloat16
    torch.testing.assert_close(ask(1), first + 1)
    assert ask() is first
    layer.load_state_dict(nn.Linear(3, 4).state_dict())
    torch.testing.assert_close(ask(), layer(cloud).detach())
    layer.weight = nn.Parameter(torch.zeros(4, 3))
    torch.testing.assert_close(ask(), layer.bias.detach().expand(10, 4))
    layer = nn.Linear(3, 4)  # another module altogether
    torch.testing.assert_close(ask(), layer(cloud).detach())
    assert len(asked) == 6


@pytest.mark.parametrize("replaced", [False, True])
def test_dropped_results_make_room(replaced: bool) -> None:
    layer, calls = nn.BatchNorm1d(3), []

    def compute() -> tuple[Tensor]:
        calls.append(0)
        return (torch.zeros(10, 3),)

    cache = FrozenCache[tuple[Tensor]](150 / 2**30, lambda: [layer])  # one result
    clouds = torch.randn(2, 10, 3)
    cache(clouds[0], compute)
    if replaced:
        layer(torch.randn(5, 3))  # writes its running mean
    for _ in range(3):
        cache(clouds[1], compute)
    assert len(calls) == (2 if replaced else 4)


def test_a_copied_detector_asks_for_its_own_modules() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.cache = FrozenCache[tuple[Tensor]](1.0, self.frozen)

        def frozen(self) -> list[nn.Module]:
            return [self.layer]

        @torch.no_grad()
        def tokens(self, cloud: Tensor) -> Tensor:
            return self.cache(cloud, lambda: (self.layer(cloud),))[0]

    first, cloud = Detector(), torch.randn(10, 3)
    before = first.tokens(cloud)
    second = deepcopy(first)
    second.layer = nn.Linear(3, 4)
    torch.testing.assert_close(second.tokens(cloud), second.layer(cloud).detach())
    assert first.tokens(cloud) is before
    with torch.no_grad():
        first.layer.weight.zero_()
    torch.testing.assert_close(first.tokens(cloud), first.layer(cloud).detach())
