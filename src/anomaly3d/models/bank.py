"""Detectors that learn nothing by gradient: what they keep of the training clouds is all they know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import InputError, about, check_choice, check_range
from anomaly3d.models.base import Detector
from anomaly3d.models.components.extent import check_extent
from anomaly3d.models.components.one_by_one import Scored, order_of, score_one_by_one
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, gather_seen
from anomaly3d.models.components.sized_buffers import make_room_first, resize_buffers
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


class BankDetector(Detector):
    """Base of detectors with a memory: one pass over the unaltered training clouds, no gradient.

    A subclass declares its memory with `register_buffer(name, None)`, says what it keeps of a cloud (`describe`), fills
    the buffers from all that was kept (`build`) and scores a cloud (`score_cloud`). It is trained, tested and compared
    like any other detector; the memory is part of the checkpoint.

    Under `strict` clouds come in canonical order, so that no score depends on the file's. In DDP every rank builds the
    same memory from the clouds of all ranks; one that the sampler repeats counts once, by its sample id.

    Args:
        protocol: `strict`, or `paper` for the method's published choices.
        memory_gb: most memory for what is kept of the training clouds, before and after `build`; more is an error, not
            an overflow. While it builds, a detector holds what it kept, the rows of a category and the memory that it
            makes of them at once: up to about three times as much for a moment, four times in DDP, where what the
            ranks send each other is there, too.
    """

    def __init__(self, protocol: Protocol = "strict", memory_gb: float = 4.0) -> None:
        super().__init__()
        check_choice(get_args(Protocol), protocol=protocol)
        check_range(0, inf, memory_gb=memory_gb)
        self.protocol = protocol
        self.memory_gb = memory_gb
        # Never changes: neither an optimizer nor DDP takes a module without a trained parameter.
        self.anchor = nn.Parameter(torch.zeros(()))
        self._seen: dict[str, Seen] = {}
        self.register_load_state_dict_pre_hook(make_room_first)

    # -- what a subclass defines -------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Tensor:
        """What to keep of a training cloud: its features, or its points."""

    @abstractmethod
    def build(self, seen: Sequence[Seen]) -> None:
        """Fill the buffers from all training clouds, in the order of their sample ids."""

    @abstractmethod
    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Scores of a cloud, in the order of its points."""

    # -- one pass ----------------------------------------------------------------------------------------------

    def loss(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        """Observe the batch; the loss is zero."""
        self.observe(batch)
        return {"loss": 0 * self.anchor}

    @torch.no_grad()
    def observe(self, batch: PointCloudBatch) -> None:
        """Keep what `describe` makes of every cloud; `batch.category` is required."""
        if batch.category is None:
            raise ValueError(f"{type(self).__name__} sorts its memory by category, and this batch has none.")
        for cloud, name, category in zip(batch.clouds(), batch.sample_id, batch.category.tolist(), strict=True):
            if name not in self._seen:
                check_extent(cloud, name)
                with about(name):
                    kept = self.describe(cloud[order_of(cloud, self.protocol)], name)
                self._seen[name] = Seen(name, category, kept)
        self._check_memory(seen.kept for seen in self._seen.values())

    @torch.no_grad()
    def finish_pass(self) -> bool:
        """Build the memory from what all ranks observed; there is nothing to learn in a second pass."""
        for theirs in gather_seen(self._seen, self.anchor.device):
            self._seen |= theirs
        self._check_memory(seen.kept for seen in self._seen.values())
        self.build([self._seen[name] for name in sorted(self._seen)])
        self._check_memory(self.buffers())
        self._seen = {}
        return True

    def collect(self, features: Iterable[Float[Tensor, "n D"]]) -> Float[Tensor, "N D"]:
        """For `build`: the features of all clouds, refused before they outgrow `memory_gb`."""
        parts = []
        for part in features:
            parts.append(part)
            self._check_memory(parts)
        return torch.cat(parts)

    def _check_memory(self, kept: Iterable[Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in kept) / 2**30
        if size > self.memory_gb:
            raise InputError(
                f"memory_gb={self.memory_gb}: {type(self).__name__} keeps {size:.3g} GiB of {len(self._seen)} training "
                "clouds; raise memory_gb, or make it keep fewer features of each"
            )

    # -- scores ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Scores of each cloud by itself."""
        if self._buffers and all(buffer is None for buffer in self._buffers.values()):
            raise InputError(
                f"{type(self).__name__} has seen no training clouds; run `anomaly3d fit` with trainer.max_epochs 1, "
                "and give its checkpoint"
            )
        return score_one_by_one(batch, self.protocol, self.score_cloud)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def fixed_settings(self) -> dict[str, Any]:
        """What decides the content of the memory; a subclass adds its own.

        The second `paper_version` is that of public code: its features are of other points, or in another unit.
        """
        return {"protocol": self.protocol} | ({"paper_version": 2} if self.protocol == "paper" else {})

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Buffers of the size that they have in `state`."""
        resize_buffers(self, state, self.anchor.device)
