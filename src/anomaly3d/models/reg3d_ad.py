"""Reg3D-AD: a bank of registered coordinates and one of Point-MAE tokens, their maps averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.models.components.memory import nearest, pack, unpack
from anomaly3d.models.components.one_by_one import Scored
from anomaly3d.models.components.seen import Seen, joined
from anomaly3d.models.components.two_maps import distance_range, in_range, spread_points
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.types import PointCloudBatch


class Reg3DAD(PatchCorePointMAE):
    """Reg3D-AD (Liu et al., NeurIPS 2023).

    `s(x) = w (d_xyz(x) - a) / (b - a) + (1 - w) (d_token(x) - a') / (b' - a')`, with d the distances to a bank of
    registered coordinates and to one of Point-MAE tokens, carried to the points. The published w is a half, the
    published a and b are the smallest and the largest distance over the test set; here they are those of the training
    features to the nearest row of the bank but themselves, per category [ours]. This departs from the publication under
    `paper` too: the scores of a cloud may not depend on the other test clouds.

    Under `paper` d are squared distances, as the search of the public code gives them: squares weigh the two maps
    otherwise [code]. The object's score is the largest of s; under `paper` the mean of the largest of both maps
    [code], which need not lie at one point. Public code stretches these largest distances by ranges of their own, over
    the objects of the test set; here those of the points serve for both [ours]: a few training clouds, whose own
    features are in the bank, would make a poor range of their largest distances.

    Args:
        coordinate_share: w; None takes 0.5 under `paper` and 0.6 under `strict`, which did best on validation clouds of
            two sets (`benchmarks/results/classical.md`) [ours].
        settings: those of `PatchCorePointMAE`; clouds are always registered.
    """

    coordinates: Float[Tensor, "M 3"]
    coordinate_offsets: Tensor
    ranges: Float[Tensor, "C 2 2"]  # per category, of coordinates and of tokens: smallest and largest

    def __init__(self, *, coordinate_share: float | None = None, **settings: Any) -> None:
        super().__init__(register=True, **settings)
        check_range(0, 1, coordinate_share=coordinate_share)
        if coordinate_share is None:
            coordinate_share = 0.6 if self.protocol == "strict" else 0.5
        self.coordinate_share = coordinate_share
        for name in ("coordinates", "coordinate_offsets", "ranges"):
            self.register_buffer(name, None)

    def scoring_settings(self) -> dict[str, Any]:
        """And the share of the coordinates."""
        return super().scoring_settings() | {"coordinate_share": self.coordinate_share}

    def build(self, seen: Sequence[Seen]) -> None:
        """Both banks of each category, and the ranges of their distances."""
        coordinates, tokens, ranges = [], [], []
        for template, placed in self.aligned_groups(seen):
            xyz = joined(placed)
            every = self.collect(self.placed_tokens(placed, template))
            kept = spread_points(xyz, self.coreset_size)
            kept_tokens = self.coreset(every)
            ranges.append(self._measure(torch.stack([distance_range(xyz, kept), distance_range(every, kept_tokens)])))
            coordinates.append(xyz[kept])
            tokens.append(every[kept_tokens])
        self.coordinates, self.coordinate_offsets = pack(coordinates)
        self.bank, self.offsets = pack(tokens)
        self.ranges = torch.stack(ranges)

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Both maps at every point, weighed."""
        placed, template, category, logits = self.placed(cloud)
        groups, tokens = self.seen_tokens(placed, name, template)
        errors = self._measure(nearest(tokens, unpack(self.bank, self.offsets)[category])[0][:, 0])
        coordinates = unpack(self.coordinates, self.coordinate_offsets)[category]
        distance = self._measure(nearest(placed, coordinates)[0][:, 0])
        ends, token_ends = self.ranges[category]
        batch = PointCloudBatch.single(placed, name)
        token_map = self.scoring(in_range(errors, token_ends)[None], groups, batch).point_scores
        coordinate_map = in_range(distance, ends)
        points = torch.lerp(token_map, coordinate_map, self.coordinate_share)
        apart = torch.lerp(token_map.max(), coordinate_map.max(), self.coordinate_share)
        return Scored(points, points.max() if self.protocol == "strict" else apart, logits)

    def _measure(self, distance: Tensor) -> Tensor:
        return distance if self.protocol == "strict" else distance.square()
