"""What all processes of a distributed training hold, gathered: statistics and buffers then agree on every rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_ranks(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The rows of all ranks, rank zero's first, of tensors with equally many rows; themselves with one process.

    Ranks may hold different numbers of rows (the last batch of an epoch). A collective call: every rank must make it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensors
    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    longest = max(int(c) for c in counts)

    def gather(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])

    return tuple(gather(rows) for rows in tensors)
