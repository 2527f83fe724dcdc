"""A grid of bins over the bits of float32 scores: it keeps their order, fits any range, and can be coarsened exactly.

A finite float's bits, read as sign and magnitude, are an integer that grows with the float. These keys are cut into
bins of 2^shift neighbours, aligned to multiples of 2^shift, so every bin of a grid lies inside one bin of each coarser
grid: counts move to a coarser grid by adding, and histograms of different parts of the data have a sum [ours].

`grid_of` takes the finest grid that covers the range of the data with the bins there are. It depends on the range only,
so the histogram does not depend on the order in which the scores came, nor on which process saw them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_MAGNITUDE = 2**31 - 1
_LARGEST = 0x7F7FFFFF
"""Key of the largest finite float32."""


class Grid(NamedTuple):
    """Bin i holds the keys k with k >> shift == first + i. With `shift` 0 every bin is a single float32 value."""

    first: int
    shift: int

    def edge(self, index: int) -> float:
        """The least finite score of a bin: a score is in this bin or above if and only if it is >= the edge."""
        key = min(max((self.first + index) << self.shift, -_LARGEST), _LARGEST)
        return key_value(torch.tensor(key)).item()


def ordered_key(scores: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """int32 keys in the order of finite scores; -0 and 0, being equal, share the key 0.

    A float32 has its magnitude's bits as key, with its sign. bfloat16 and float16 are exact in float32.
    """
    bits = scores.float().view(torch.int32)
    magnitude = bits & _MAGNITUDE
    return torch.where(bits < 0, -magnitude, magnitude)


def key_value(key: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The float32 of a key: the inverse of `ordered_key`."""
    magnitude = key.abs().to(torch.int32).view(torch.float32)
    return torch.where(key < 0, -magnitude, magnitude)


def grid_of(lowest: int, highest: int, bins: int) -> Grid:
    """The finest grid whose `bins` bins cover the keys from `lowest` to `highest`."""
    shift = max(0, (highest - lowest).bit_length() - bins.bit_length())
    while (highest >> shift) - (lowest >> shift) >= bins:
        shift += 1
    return Grid(lowest >> shift, shift)


def regrid(counts: Shaped[Tensor, "... bins"], old: Grid, new: Grid) -> Shaped[Tensor, "... bins"]:
    """The same counts on a grid that is not finer and covers them."""
    if old == new:
        return counts
    index = ((old.first + torch.arange(counts.shape[-1], device=counts.device)) >> (new.shift - old.shift)) - new.first
    index = index.clamp(0, counts.shape[-1] - 1)  # bins beyond the data are empty: they may go anywhere
    return torch.zeros_like(counts).index_add_(-1, index, counts)
