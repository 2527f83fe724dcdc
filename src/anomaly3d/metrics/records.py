"""What the evaluator remembers of every cloud, gathered over processes; and, in exact evaluations, of every point."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from anomaly3d.metrics.sketch import QUANTILES
from anomaly3d.metrics.states import ListStateMetric

_CLOUD_STATES = {
    "cloud_id": torch.int64,
    "source": torch.int64,  # of clouds that derive from one scan
    "category": torch.int64,
    "label": torch.int64,
    "points": torch.int64,
    "points_with_truth": torch.int64,  # all of a cloud's points or none
    "anomalous_points": torch.int64,
    "pooled": torch.int64,  # 1 where this process has added the points to its histograms or lists
    "category_hit": torch.int64,  # 1 right, 0 wrong, -1 not asked
    "object_score": torch.float32,
    "regions": torch.int64,
    "auroc": torch.float64,
    "true_alarms": torch.int64,
    "false_alarms": torch.int64,
    "sketches": torch.float32,  # 3 x QUANTILES a cloud
}
_POINT_STATES = {"score": torch.float32, "mask": torch.bool, "overlap": torch.float64}


CloudPoints = tuple[Float[Tensor, " N"], Bool[Tensor, " N"], Float64[Tensor, " A"]]
"""Scores and truth of a cloud's points, and the overlap weights of the anomalous ones."""


def stable_id(sample_id: str) -> int:
    """Signed 64-bit number of a sample id, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(frozen=True)
class Clouds:
    """C clouds; fields as in `CloudSummary` and `CloudRecords`."""

    cloud_id: Int[Tensor, " C"]
    source: Int[Tensor, " C"]
    category: Int[Tensor, " C"]
    label: Int[Tensor, " C"]
    points: Int[Tensor, " C"]
    points_with_truth: Int[Tensor, " C"]
    anomalous_points: Int[Tensor, " C"]
    pooled: Int[Tensor, " C"]
    category_hit: Int[Tensor, " C"]
    object_score: Float[Tensor, " C"]
    regions: Int[Tensor, " C"]
    auroc: Float64[Tensor, " C"]
    true_alarms: Int[Tensor, " C"]
    false_alarms: Int[Tensor, " C"]
    sketches: Float[Tensor, "C 3 Q"]

    def __len__(self) -> int:
        return len(self.cloud_id)

    def select(self, index: Int[Tensor, " c"]) -> Clouds:
        """The clouds at these positions."""
        return Clouds(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def first_occurrence(self) -> Int[Tensor, " C"]:
        """For each cloud the position of the first one with its id: its own, unless it is a repeat."""
        position = torch.arange(len(self), device=self.cloud_id.device)
        _, group = self.cloud_id.unique(return_inverse=True)
        return torch.full_like(position, len(self)).scatter_reduce(0, group, position, "amin")[group]


class _Records(ListStateMetric):
    """List states by name; `compute` gathers them, repeats included."""

    full_state_update = False
    kinds: dict[str, torch.dtype]

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        for name, dtype in self.kinds.items():
            self.add_list_state(name, dtype)

    def update(self, **pieces: Tensor) -> None:
        """Add one piece to each state."""
        self.append(**pieces)

    def compute(self) -> dict[str, Tensor]:
        """The gathered states by name, in the order of ranks; to be called by every process."""
        return {name: self.concatenated(name) for name in self.kinds}


class CloudRecords(_Records):
    """States of clouds: 6 kB each, most of it quantiles for the bootstrap."""

    kinds = _CLOUD_STATES

    def clouds(self) -> Clouds:
        """All clouds of all processes."""
        states = {name: state.reshape(-1) for name, state in self.compute().items()}  # torchmetrics makes scalars
        states["sketches"] = states["sketches"].reshape(-1, 3, QUANTILES)
        return Clouds(**states)


class PointLists(_Records):
    """States of points, of one cloud after the other: 5 bytes each, and 8 more for an anomalous one."""

    kinds = _POINT_STATES

    def split(self, clouds: Clouds) -> list[CloudPoints]:
        """The points of each of the clouds, which are those of `CloudRecords.clouds`."""
        states = {name: state.reshape(-1) for name, state in self.compute().items()}
        points, anomalous = clouds.points_with_truth.tolist(), clouds.anomalous_points.tolist()
        return list(
            zip(
                states["score"].split(points),
                states["mask"].split(points),
                states["overlap"].split(anomalous),
                strict=True,
            )
        )
