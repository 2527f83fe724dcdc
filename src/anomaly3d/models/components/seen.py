"""What is kept of training clouds until a pass over them is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from anomaly3d.errors import InputError


class Seen(NamedTuple):
    """What is kept of one training cloud."""

    sample_id: str
    category: int
    kept: Tensor


def gather_seen(seen: dict[str, Seen], device: torch.device) -> list[dict[str, Seen]]:
    """What every rank has seen, by sample id, on this rank's device. A collective call."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [seen]
    ours = {name: entry._replace(kept=entry.kept.cpu()) for name, entry in seen.items()}
    everyone: list[dict[str, Seen]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, ours)
    return [{name: entry._replace(kept=entry.kept.to(device)) for name, entry in theirs.items()} for theirs in everyone]


def joined(clouds: Sequence[Seen]) -> Tensor:
    """The rows that were kept of all clouds."""
    return torch.cat([cloud.kept for cloud in clouds])


def by_category(seen: Sequence[Seen], categories: Sequence[str]) -> list[list[Seen]]:
    """The clouds of each category.

    Raises:
        InputError: nothing was kept of one of them.
    """
    groups: list[list[Seen]] = [[] for _ in categories]
    for entry in seen:
        groups[entry.category].append(entry)
    for name, group in zip(categories, groups, strict=True):
        if not group:
            raise InputError(
                f"{name}: no training cloud of this category in the pass; lift trainer.limit_train_batches, or leave "
                "the category out of data.categories"
            )
    return groups
