"""Bins over the bits of float32 scores: they keep the order, cover every float, and are fine where scores are.

A finite float's bits, read as sign and magnitude, are an integer that grows with the float. The upper 14 bits of this
key are a cell: sign, exponent and 5 bits of the mantissa, so that the scores of a cell differ by at most 3 %. Each cell
is cut into 2^level equal bins. Bins of a lower level hold whole bins of a higher one: counts move to a coarser grid
exactly, by adding, and histograms on different grids have a sum on the coarser of both [ours].
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

CELLS = 2**14
MOST = 18  # level at which a bin is one float
_MAGNITUDE = 2**31 - 1
_LARGEST = 0x7F7FFFFF
"""Key of the largest finite float32."""


class Grid:
    """Bins of all cells, ascending; cell c has 2^level[c] of them."""

    def __init__(self, level: Int[Tensor, " CELLS"]) -> None:
        self.level = level

    @cached_property
    def width(self) -> Int[Tensor, " CELLS"]:
        """Number of bins of each cell."""
        return 2 ** self.level.long()

    @cached_property
    def first(self) -> Int[Tensor, " CELLS"]:
        """First bin of each cell."""
        return self.width.cumsum(0) - self.width

    @cached_property
    def bins(self) -> int:
        """Number of bins of all cells."""
        return int(self.width.sum())

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """First bin and shift of each cell, narrow so that they stay in the cache."""
        return self.first.int(), (MOST - self.level).int()

    def index(self, scores: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The bin (int32) of each score."""
        key = ordered_key(scores)
        cell = (key >> MOST) + CELLS // 2
        first, shift = (table.index_select(0, cell) for table in self._tables)
        return first.add_(key.bitwise_and_(2**MOST - 1).bitwise_right_shift_(shift))

    def edge(self, index: int) -> float:
        """The least finite score of a bin: a score is in this bin or above if and only if it is >= the edge."""
        cell = int(torch.searchsorted(self.first, index, right=True)) - 1
        inside = (index - int(self.first[cell])) << (MOST - int(self.level[cell]))
        key = ((cell - CELLS // 2) << MOST) + inside
        return key_value(torch.tensor(min(max(key, -_LARGEST), _LARGEST))).item()

    def cell_counts(self, counts: Shaped[Tensor, " bins"]) -> Shaped[Tensor, " CELLS"]:
        """Counts of whole cells."""
        reached = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return reached[self.first + self.width] - reached[self.first]

    def refined(self, free: Bool[Tensor, " CELLS"], share: Float[Tensor, " CELLS"], room: int) -> Grid:
        """Cells that are `free` (have no counts) cut finer, with at most `room` more bins, in proportion to `share`."""
        level = (1 + room * share).log2().floor().clamp(max=MOST).to(self.level.dtype)
        return Grid(torch.where(free, torch.maximum(self.level, level), self.level))

    def shrunk(self, bins: int) -> Grid:
        """The grid with all levels lowered alike, as often as needed to have no more bins than this."""
        grid = self
        while grid.bins > bins:
            grid = Grid((grid.level - 1).clamp(min=0))
        return grid

    def move(self, counts: Shaped[Tensor, " B"], new: Grid) -> Shaped[Tensor, " B"]:
        """Counts on this grid, moved to one that is finer in empty cells only; both fit into B bins."""
        cell = torch.repeat_interleave(torch.arange(CELLS, device=counts.device), self.width)
        inside = (torch.arange(self.bins, device=counts.device) - self.first[cell]) << (MOST - self.level[cell].long())
        index = new.first[cell] + (inside >> (MOST - new.level[cell].long()))
        return torch.zeros_like(counts).index_add_(0, index, counts[: self.bins])


def ordered_key(scores: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """int32 keys in the order of finite scores; -0 and 0, being equal, share the key 0.

    A float32 has its magnitude's bits as key, with its sign. bfloat16 and float16 are exact in float32.
    """
    bits = scores.float().view(torch.int32)
    sign = bits >> 31  # 0 or -1, and (m ^ -1) - -1 is -m: twenty times as fast as a choice by `where`
    return (bits & _MAGNITUDE).bitwise_xor_(sign).sub_(sign)


def key_value(key: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The float32 of a key: the inverse of `ordered_key`."""
    magnitude = key.abs().to(torch.int32).view(torch.float32)
    return torch.where(key < 0, -magnitude, magnitude)
