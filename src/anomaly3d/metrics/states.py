"""List states that keep their type when processes are gathered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ListStateMetric(Metric):
    """Metric whose states are lists of 1-D tensors of a fixed type, concatenated over updates and processes.

    torchmetrics gathers float32 from a process that was never updated, whatever type the others send; with integer
    or boolean states that corrupts the result. Here an empty state is an empty tensor of the state's own type.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._types: dict[str, torch.dtype] = {}

    def add_list_state(self, name: str, dtype: torch.dtype) -> None:
        """Declare a state whose pieces `append` adds."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._types[name] = dtype

    def append(self, **pieces: Tensor) -> None:
        """Add one 1-D piece to each named state, converted to the state's type and device."""
        for name, piece in pieces.items():
            getattr(self, name).append(piece.detach().to(self.device, self._types[name]))

    def concatenated(self, name: str) -> Tensor:
        """All pieces of one state behind each other, before or after a gather."""
        state = getattr(self, name)
        return dim_zero_cat(state) if len(state) else torch.empty(0, dtype=self._types[name], device=self.device)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all processes."""
        for name in self._types:
            if not self._is_synced:
                setattr(self, name, [self.concatenated(name)])
        super().sync(*args, **kwargs)
