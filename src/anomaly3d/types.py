"""The three things that travel: a batch of clouds, its patches, and a prediction.

    reader -> PointCloudBatch -> detector -> AnomalyPrediction -> evaluator -> table

Symbols in shapes: B clouds, P points of all clouds together, G patches per cloud, K points per patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class _Movable:
    """`.to(device)` for a dataclass of tensors; Lightning moves batches through it."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        moved = {
            f.name: value.to(*args, **kwargs)
            for f in fields(self)  # pyright: ignore[reportArgumentType]
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class PointCloudBatch(_Movable):
    """Clouds of different sizes, packed one behind the other in the order of their files.

    `xyz` is in file units, each cloud centred on its mean. `category` indexes the data module's category
    names; `label` is 1 for an anomalous cloud; `mask` is true for an anomalous point. The three are None where the
    truth is unknown, and a detector never sees `label` and `mask` when it scores. `masked` says which clouds' points
    have a truth, where not all have; `mask` is false for the others.
    """

    xyz: Float[Tensor, "P 3"]
    offsets: Int[Tensor, "B+1"]
    sample_id: tuple[str, ...]
    category: Int[Tensor, " B"] | None = None
    label: Int[Tensor, " B"] | None = None
    mask: Bool[Tensor, " P"] | None = None
    masked: Bool[Tensor, " B"] | None = None

    def __len__(self) -> int:
        return len(self.sample_id)

    def clouds(self) -> Iterator[Float[Tensor, "N 3"]]:
        """Each cloud's points, as views."""
        return iter(self.split(self.xyz))

    def named_clouds(self) -> Iterator[tuple[Float[Tensor, "N 3"], str, int | None]]:
        """Each cloud with its sample id and category."""
        categories = [None] * len(self) if self.category is None else self.category.tolist()
        return zip(self.clouds(), self.sample_id, categories, strict=True)

    def split(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Cut a packed per-point tensor (P, ...) into one view per cloud."""
        return torch.split(packed, self.sizes())

    def sizes(self) -> list[int]:
        """Points per cloud."""
        return self.offsets.diff().tolist()

    def without_truth(self) -> PointCloudBatch:
        """The same clouds with category, label and mask removed: what a detector is given to score."""
        return replace(self, category=None, label=None, mask=None, masked=None)

    @staticmethod
    def pack(
        clouds: Sequence[Float[Tensor, "N 3"]],
        sample_id: Sequence[str],
        category: Sequence[int] | None = None,
        label: Sequence[int] | None = None,
        mask: Sequence[Bool[Tensor, " N"] | None] | None = None,
    ) -> PointCloudBatch:
        """Pack single clouds; every sequence has one entry per cloud, `mask` None for one without point truth.

        All of the batch, `offsets` included, lies on the device of the first cloud.
        """
        sizes = torch.tensor([0, *(len(cloud) for cloud in clouds)])
        known = [False] * len(clouds) if mask is None else [one is not None for one in mask]
        masks = None
        if mask is not None and any(known):
            masks = [
                cloud.new_zeros(len(cloud), dtype=torch.bool) if one is None else one
                for cloud, one in zip(clouds, mask, strict=True)
            ]
        return PointCloudBatch(
            xyz=torch.cat(list(clouds)),
            offsets=sizes.cumsum(0),
            sample_id=tuple(sample_id),
            category=None if category is None else torch.as_tensor(category),
            label=None if label is None else torch.as_tensor(label),
            mask=None if masks is None else torch.cat(masks),
            masked=None if masks is None or all(known) else torch.tensor(known),
        ).to(clouds[0].device)

    @staticmethod
    def single(cloud: Float[Tensor, "N 3"], name: str) -> PointCloudBatch:
        """One cloud of unknown truth as a batch, on its device; `name` is its sample id."""
        return PointCloudBatch.pack([cloud], [name])


@dataclass(frozen=True)
class PatchGroups:
    """Overlapping patches of B clouds, in the model's frame.

    The frame is the unit sphere about a cloud's mean, or about its template's; banks of tokens under `paper` keep the
    unit of the file, with a radius of 1. `centroid` and `radius` map file units into it: (x - centroid) / radius.

    `points` has the patch centre subtracted and its neighbours sorted from near to far, so that the first k
    of K are the k-neighbourhood. `index` says which point of `cloud[b]` each one is; `cloud[b]` are the points
    the model saw: after the voxel filter, in canonical order under `strict` and in the file's under `paper`.
    """

    centres: Float[Tensor, "B G 3"]
    points: Float[Tensor, "B G K 3"]
    index: Int[Tensor, "B G K"]
    cloud: tuple[Float[Tensor, "N 3"], ...]
    centroid: Float[Tensor, "B 3"]
    radius: Float[Tensor, " B"]

    def in_frame(self, xyz: Float[Tensor, "N 3"], b: int) -> Float[Tensor, "N 3"]:
        """Points of cloud b, given in the batch's file units, in the model's frame."""
        return (xyz - self.centroid[b]) / self.radius[b]


@dataclass(frozen=True)
class AnomalyPrediction(_Movable):
    """Scores of a batch; larger is more anomalous, and all clouds share one scale.

    `point_scores` follows `PointCloudBatch.xyz`: every point of every original cloud, in the file's order.
    `category_logits` (unified models that predict one) is over the categories of the training data.
    """

    point_scores: Float[Tensor, " P"]
    object_scores: Float[Tensor, " B"]
    category_logits: Float[Tensor, "B C"] | None = None
