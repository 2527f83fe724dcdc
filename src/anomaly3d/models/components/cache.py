"""Training never recomputes what is constant: results of frozen parts, kept by the content of their input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Tensors = TypeVar("Tensors", bound=Sequence[Tensor])


class _Written(NamedTuple):
    """A tensor as it was: held, so that no other can come to lie at its address."""

    tensor: Tensor
    address: int
    version: int

    @classmethod
    def now(cls, tensor: Tensor) -> _Written:
        return cls(tensor, tensor.data_ptr(), tensor._version)

    def same(self, other: _Written) -> bool:
        return self.tensor is other.tensor and self[1:] == other[1:]


class FrozenCache(Generic[Tensors]):
    """Tuples of tensors that a frozen computation made of a cloud.

    The key is the cloud's own bytes, so that a changed cloud can't meet a stale result, the variant, where there are
    several results of a cloud, its device and the precision of autocast. All results are dropped when a weight or
    buffer of the frozen modules has been written to or replaced (but by way of `.data`, which torch does not count),
    or one of these modules. What no longer fits within the limit is computed anew each time. Not part of a checkpoint.

    Args:
        limit_gb: memory for the results.
        frozen: the modules that the results depend on, asked for at each call; a bound method, not a lambda, goes with
            its detector when that is copied.
    """

    def __init__(self, limit_gb: float, frozen: Callable[[], Iterable[nn.Module]]) -> None:
        self._limit = self._free = int(limit_gb * 2**30)
        self._frozen = frozen
        self._state: list[_Written] = []
        self._kept: dict[Hashable, Tensors] = {}

    def __call__(self, cloud: Tensor, compute: Callable[[], Tensors], variant: Hashable = None) -> Tensors:
        """The result for `cloud`, from `compute` the first time."""
        state = [_Written.now(t) for module in self._frozen() for t in (*module.parameters(), *module.buffers())]
        if len(state) != len(self._state) or not all(map(_Written.same, state, self._state)):
            self._state, self._free = state, self._limit
            self._kept.clear()
        content = hashlib.blake2b(cloud.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
        device = cloud.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (content, variant, str(cloud.device), precision)
        if (kept := self._kept.get(key)) is not None:
            return kept
        result = compute()
        size = sum(tensor.nbytes for tensor in result)
        if size <= self._free:
            self._free -= size
            self._kept[key] = result
        return result
