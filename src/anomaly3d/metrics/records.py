"""What the evaluator remembers of every cloud and point, gathered over processes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anomaly3d.metrics.states import ListStateMetric

_CLOUD_STATES = {
    "cloud_id": torch.int64,
    "category": torch.int64,
    "label": torch.int64,
    "points": torch.int64,
    "points_with_truth": torch.int64,  # all of a cloud's points or none: how many of the point entries are its own
    "category_hit": torch.int64,  # 1 right, 0 wrong, -1 not asked
    "object_score": torch.float32,
}
_POINT_STATES = {"point_score": torch.float32, "point_mask": torch.bool}


def stable_id(sample_id: str) -> int:
    """Signed 64-bit number of a sample id, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(frozen=True)
class Clouds:
    """C clouds, those with point truth followed by their points in `point_score` and `point_mask`."""

    cloud_id: Int[Tensor, " C"]
    category: Int[Tensor, " C"]
    label: Int[Tensor, " C"]
    points: Int[Tensor, " C"]
    points_with_truth: Int[Tensor, " C"]
    category_hit: Int[Tensor, " C"]
    object_score: Float[Tensor, " C"]
    point_score: Float[Tensor, " P"]
    point_mask: Bool[Tensor, " P"]

    def __len__(self) -> int:
        return len(self.cloud_id)

    def select(self, index: Int[Tensor, " c"]) -> Clouds:
        """The clouds at these positions, with their points."""
        sizes = self.points_with_truth.tolist()
        scores, masks = self.point_score.split(sizes), self.point_mask.split(sizes)
        chosen = index.tolist()
        return Clouds(
            **{name: getattr(self, name)[index] for name in _CLOUD_STATES},
            point_score=torch.cat([self.point_score[:0], *(scores[i] for i in chosen)]),
            point_mask=torch.cat([self.point_mask[:0], *(masks[i] for i in chosen)]),
        )

    def first_occurrence(self) -> Int[Tensor, " C"]:
        """For each cloud the position of the first one with its id: its own, unless it is a repeat."""
        position = torch.arange(len(self), device=self.cloud_id.device)
        _, group = self.cloud_id.unique(return_inverse=True)
        return torch.full_like(position, len(self)).scatter_reduce(0, group, position, "amin")[group]


class CloudRecords(ListStateMetric):
    """List states of clouds and points; `compute` gathers them, repeats included. 5 bytes per point."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        for name, dtype in (_CLOUD_STATES | _POINT_STATES).items():
            self.add_list_state(name, dtype)

    def update(self, **pieces: Tensor) -> None:
        """Add one piece to each state; the point states may be left out where there is no point truth."""
        self.append(**pieces)

    def compute(self) -> dict[str, Tensor]:
        """The gathered states by name (torchmetrics turns states of one element into scalars)."""
        return {name: self.concatenated(name) for name in _CLOUD_STATES | _POINT_STATES}

    def clouds(self) -> Clouds:
        """All clouds of all processes, in the order of ranks; to be called by every process."""
        return Clouds(**{name: state.reshape(-1) for name, state in self.compute().items()})
