"""The memory of past global tokens that a contrastive loss with batch size 1 needs."""

from __future__ import annotations

from math import inf
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import check_choice, check_range
from anomaly3d.models.components.ranks import gather_ranks

Eviction = Literal["fifo", "balanced"]


class ContrastiveBuffer(nn.Module):
    """At most `size` past (embedding, category) pairs; saved with the checkpoint.

    Under distributed training every rank pushes what all ranks gathered, in the order of the ranks: all hold the
    same buffer, so the broadcast of buffers from rank zero changes nothing.

    Args:
        size: entries kept [paper: 64].
        width: channels of an embedding.
        eviction: what makes room once full. `fifo` drops the oldest entry [paper]; `balanced` the oldest of the
            category with most entries, the newcomer's included, so that every category keeps a positive [ours]. With
            the 40 categories of Anomaly-ShapeNet 20 % of the steps have none under `fifo`, as `test_sedir_buffer.py`
            counts; with 64 categories or fewer none under `balanced`.
    """

    embedding: Float[Tensor, "L Z"]
    category: Int[Tensor, " L"]
    stamp: Int[Tensor, " L"]

    def __init__(self, size: int, width: int, eviction: Eviction = "fifo") -> None:
        super().__init__()
        check_range(1, inf, buffer_size=size)
        check_choice(get_args(Eviction), buffer_eviction=eviction)
        self.eviction = eviction
        self.register_buffer("embedding", torch.zeros(size, width))
        self.register_buffer("category", torch.full((size,), -1))
        self.register_buffer("stamp", torch.full((size,), -1))  # order of arrival; -1: empty

    def __len__(self) -> int:
        return int((self.stamp >= 0).sum())

    @torch.no_grad()
    def push(self, embedding: Float[Tensor, "B Z"], category: Int[Tensor, " B"]) -> None:
        """Append the pairs of this step, of all ranks, but for embeddings that are not finite.

        A collective call where a process group is initialised.
        """
        embedding, category = gather_ranks(embedding.detach().to(self.embedding.dtype), category)
        finite = embedding.isfinite().all(1)  # half precision overflows, and the step is skipped: not the buffer's
        embedding, category = embedding[finite], category[finite]
        for new_embedding, new_category in zip(embedding, category, strict=True):
            slot = self._slot(new_category)
            self.stamp[slot] = self.stamp.max() + 1
            self.embedding[slot] = new_embedding
            self.category[slot] = new_category

    def _slot(self, newcomer: Int[Tensor, ""]) -> Int[Tensor, ""]:
        """Where the newcomer goes: an empty slot (their stamps are the smallest), else the evicted entry's."""
        if self.eviction == "fifo" or bool((self.stamp < 0).any()):
            return self.stamp.argmin()
        count = torch.bincount(torch.cat([self.category, newcomer[None]]))
        most = count[self.category] == count[self.category].max()
        return self.stamp.masked_fill(~most, torch.iinfo(self.stamp.dtype).max).argmin()
