"""Buffers whose size only training knows: before a state is loaded, they get the size that they have in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


class MakesRoom(Protocol):
    """A module with such buffers."""

    def make_room(self, state: State) -> None:
        """Give them the size that they have in `state`, by names within this module."""


def make_room_first(module: MakesRoom, state: State, prefix: str, *_: object) -> None:
    """Hook for `register_load_state_dict_pre_hook`: the module makes room for its part of the state."""
    module.make_room(part_of(state, prefix))


def part_of(state: State, prefix: str) -> dict[str, Tensor]:
    """What is under `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def resize_buffers(module: nn.Module, state: State, device: torch.device) -> None:
    """Replace the module's own buffers that are in `state` by empty ones of that size, on `device`."""
    for name in module._buffers:
        if name in state:
            module._buffers[name] = torch.empty_like(state[name], device=device)
