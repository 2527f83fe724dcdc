"""Training never recomputes what is constant: results of frozen parts, kept by the content of their input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor

Tensors = TypeVar("Tensors", bound=Sequence[Tensor])


class FrozenCache(Generic[Tensors]):
    """Tuples of tensors that a frozen computation made of a cloud.

    The key is the cloud's own bytes, so that a changed cloud can't meet a stale result, and the variant, where there
    are several results of a cloud. What no longer fits within `limit_gb` is computed anew each time. Not part of a
    checkpoint.
    """

    def __init__(self, limit_gb: float) -> None:
        self._free = int(limit_gb * 2**30)
        self._kept: dict[bytes, Tensors] = {}

    def __call__(self, cloud: Tensor, compute: Callable[[], Tensors], variant: int = 0) -> Tensors:
        """The result for `cloud`, from `compute` the first time."""
        content = cloud.detach().cpu().contiguous().numpy().tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest() + f"{variant} {cloud.device}".encode()
        if (kept := self._kept.get(key)) is not None:
            return kept
        result = compute()
        size = sum(tensor.nbytes for tensor in result)
        if size <= self._free:
            self._free -= size
            self._kept[key] = result
        return result
