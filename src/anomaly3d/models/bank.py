"""Detectors that learn nothing by gradient: what they keep of the training clouds is all they know."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import InputError, check_range
from anomaly3d.models.base import Detector
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.ops.canonical import canonical_order
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


class Seen(NamedTuple):
    """What is kept of one training cloud."""

    sample_id: str
    category: int
    kept: Tensor


class Scored(NamedTuple):
    """Scores of one cloud; `logits` (C,) where a category is predicted."""

    points: Float[Tensor, " N"]
    object: Float[Tensor, ""]
    logits: Float[Tensor, " C"] | None = None


class BankDetector(Detector):
    """Base of detectors with a memory: one pass over the unaltered training clouds, no gradient.

    A subclass declares its memory with `register_buffer(name, None)`, says what it keeps of a cloud (`describe`), fills
    the buffers from all that was kept (`build`) and scores a cloud (`score_cloud`). It is trained, tested and compared
    like any other detector; the memory is part of the checkpoint.

    Under `strict` clouds come in canonical order, so that no score depends on the file's. In DDP every rank builds the
    same memory from the clouds of all ranks; one that the sampler repeats counts once, by its sample id.

    Args:
        protocol: `strict`, or `paper` for the method's published choices.
        memory_gb: most memory for what is kept of the training clouds; more is an error, not an overflow.
    """

    def __init__(self, protocol: Protocol = "strict", memory_gb: float = 4.0) -> None:
        super().__init__()
        check_range(0, inf, memory_gb=memory_gb)
        self.protocol = protocol
        self.memory_gb = memory_gb
        # Never changes: neither an optimizer nor DDP takes a module without a trained parameter.
        self.anchor = nn.Parameter(torch.zeros(()))
        self._seen: dict[str, Seen] = {}
        self.register_load_state_dict_pre_hook(_make_room_first)

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
                self._seen[name] = Seen(name, category, self.describe(cloud[self._order(cloud)], name))
        self._check_memory()

    @torch.no_grad()
    def finish_pass(self) -> bool:
        """Build the memory from what all ranks observed; there is nothing to learn in a second pass."""
        for theirs in _gather(self._seen, self.anchor.device):
            self._seen |= theirs
        self._check_memory()
        self.build([self._seen[name] for name in sorted(self._seen)])
        self._seen = {}
        return True

    def _check_memory(self) -> None:
        size = sum(seen.kept.nbytes for seen in self._seen.values()) / 2**30
        if size > self.memory_gb:
            raise InputError(
                f"memory_gb={self.memory_gb}: {type(self).__name__} keeps {size:.2f} GiB of {len(self._seen)} training "
                "clouds; raise memory_gb, or make it keep fewer features of each"
            )

    # -- scores ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Scores of each cloud by itself."""
        if all(buffer is None for buffer in self._buffers.values()):
            raise InputError(
                f"{type(self).__name__} has seen no training clouds; run `anomaly3d fit` with trainer.max_epochs 1, "
                "and give its checkpoint"
            )
        scored = []
        for cloud, name in zip(batch.clouds(), batch.sample_id, strict=True):
            order = self._order(cloud)
            found = self.score_cloud(cloud[order], name)
            scored.append(found._replace(points=torch.empty_like(found.points).index_copy_(0, order, found.points)))
        points, objects, logits = zip(*scored, strict=True)
        return AnomalyPrediction(
            point_scores=torch.cat(points).float(),
            object_scores=torch.stack(objects).float(),
            category_logits=None if logits[0] is None else torch.stack(logits).float(),
        )

    def _order(self, cloud: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
        return canonical_order(cloud) if self.protocol == "strict" else torch.arange(len(cloud), device=cloud.device)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Buffers of the size that they have in `state`."""
        for name in self._buffers:
            if name in state:
                self._buffers[name] = torch.empty_like(state[name], device=self.anchor.device)


def _make_room_first(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    assert isinstance(module, BankDetector)
    module.make_room({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})


def _gather(seen: dict[str, Seen], device: torch.device) -> list[dict[str, Seen]]:
    """What every rank has seen, on this rank's device."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [seen]
    ours = {name: entry._replace(kept=entry.kept.cpu()) for name, entry in seen.items()}
    everyone: list[dict[str, Seen]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, ours)
    return [{name: entry._replace(kept=entry.kept.to(device)) for name, entry in theirs.items()} for theirs in everyone]


def by_category(seen: Sequence[Seen], categories: int) -> list[list[Tensor]]:
    """What was kept of the clouds of each category."""
    return [[entry.kept for entry in seen if entry.category == c] for c in range(categories)]
