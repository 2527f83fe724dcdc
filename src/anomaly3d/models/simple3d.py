"""Simple3D: a bank of histograms at several scales, averaged over groups of points."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.errors import InputError, check_range
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.components.coreset import greedy_coreset
from anomaly3d.models.components.fpfh import fpfh
from anomaly3d.models.components.memory import CategoryBanks, pack
from anomaly3d.models.components.one_by_one import Scored
from anomaly3d.models.components.point_features import key_points
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.sampled_scoring import SampledScoring
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, by_category, joined
from anomaly3d.ops.fps import farthest_point_sampling
from anomaly3d.ops.grouping import interpolate
from anomaly3d.ops.knn import knn
from anomaly3d.ops.sphere import centre_and_radius
from anomaly3d.ops.stages import stage


class Simple3D(BankDetector):
    """Simple3D: histograms at several scales, averaged over groups of points, and a bank.

    Cheng et al., Towards High-Resolution 3D Anomaly Detection: A Scalable Dataset and Real-Time Framework for Subtle
    Industrial Defects, AAAI 2026 (arXiv 2507.07435). Descriptors (MSND) are FPFH, their aggregation (LFSA) is a mean
    over the points of a group [code]:

    `f(c) = mean over the group_size points x nearest to c of [FPFH_40(x), FPFH_80(x), FPFH_120(x)]`. The score of a
    group's centre c is the distance of f(c) to the nearest feature of the training clouds. One detector of several
    categories takes the bank with the smallest median distance [ours], which on scans from one side is often the wrong
    one (`CategoryBanks`); published is one bank per category.

    Under `strict` histograms are taken at the key points of a voxel filter, each of which is a centre, too, and
    `PointScoring` makes the map [ours]. Under `paper` every point of the cloud has its histograms, groups lie around
    farthest points, the first of which is the file's first, and `SampledScoring` makes the map [code].

    Public code differs from data set to data set: for Real3D-AD give `voxel_size` 0.15 and `top_share` 1. What it has
    there and we have not: training clouds that were cut beforehand, nothing says how, and metrics at the points that
    the filter leaves. Only its command for MiniShift runs as it stands (`--num_MSND True` of the others is no number),
    so its scales are taken for all. Its coreset is in half precision, ours in single.

    Args:
        neighbours: points of the neighbourhoods [paper: 40, 80, 120]. None takes these under `strict` and (40, 80, 80,
            120) under `paper` [code: its feature has the second scale twice, 132 columns].
        normal_neighbours: points of the neighbourhood of a normal; None takes 30 under `strict` [ours], 10 under
            `paper` [code].
        num_groups: groups of a cloud; a cloud of fewer points has one around each [ours: public code repeats a point].
            None takes all key points under `strict` [ours], 4096 under `paper` [code: all its commands; 2048 where they
            say nothing].
        group_size: points of a group, its centre included; all points of a cloud that has fewer [ours]. None takes 8
            under `strict` [ours], 128 under `paper` [code].
        voxel_size: edge of a voxel filter. None takes 0.02 of the cloud's radius under `strict` [ours] and filters
            nothing under `paper` [code: on Anomaly-ShapeNet and MiniShift; on Real3D-AD 0.15], where it is in the unit
            of the file. Points of the file then have scores by those that the filter leaves [ours: public code has no
            others], and the object's score is made of these.
        coreset_size: most features kept of each category [ours]; None takes 10,000 under `strict`, 1,000,000 under
            `paper`.
        coreset_share: share of a category's features that is kept; None takes 1 under `strict` [ours], 0.05 under
            `paper` [code]. There the first feature of the first cloud begins the coreset, and distances are of the
            features themselves [code: its random projection wants more columns than these have, and is left out].
        smooth_neighbours: key points over which a score is averaged under `strict`, None takes 64 [ours]; points
            around a sample under `paper`, None takes 12 [code].
        smooth_samples: samples of the cloud at which scores are averaged under `paper` [code: 1024].
        top_share: share of the largest point scores whose mean is the object's; None takes 0.01 under `strict` [ours]
            and `top_points` under `paper`. 1 is public code's on Real3D-AD, 0, the largest alone, on other sets.
        top_points: number of the largest point scores whose mean is the object's under `paper` [code: 80 on
            Anomaly-ShapeNet, MiniShift and MulSen-AD]; a `top_share` replaces it.
        protocol: `strict` does not depend on the order of the points, the unit of the file, or the signs of normals.
        memory_gb: most memory for the features of the training clouds.
    """

    bank: Float[Tensor, "M D"]
    offsets: Int[Tensor, "C+1"]

    def __init__(
        self,
        *,
        neighbours: Sequence[int] | None = None,
        normal_neighbours: int | None = None,
        num_groups: int | None = None,
        group_size: int | None = None,
        voxel_size: float | None = None,
        coreset_size: int | None = None,
        coreset_share: float | None = None,
        smooth_neighbours: int | None = None,
        smooth_samples: int = 1024,
        top_share: float | None = None,
        top_points: int = 80,
        protocol: Protocol = "strict",
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(protocol, memory_gb)
        check_range(1e-9, inf, voxel_size=voxel_size)
        check_range(1, inf, num_groups=num_groups, group_size=group_size, coreset_size=coreset_size)
        check_range(3, inf, normal_neighbours=normal_neighbours)
        check_range(1e-6, 1, coreset_share=coreset_share)
        strict = protocol == "strict"
        if neighbours is None:
            neighbours = (40, 80, 120) if strict else (40, 80, 80, 120)
        self.neighbours = tuple(neighbours)
        if not self.neighbours:
            raise InputError("neighbours=(): give at least one number of points")
        check_range(1, inf, neighbours=min(self.neighbours))
        self.normal_neighbours = (30 if strict else 10) if normal_neighbours is None else normal_neighbours
        self.num_groups = 4096 if num_groups is None and not strict else num_groups
        self.group_size = (8 if strict else 128) if group_size is None else group_size
        self.voxel_size = 0.02 if voxel_size is None and strict else voxel_size
        self.coreset_size = (10_000 if strict else 1_000_000) if coreset_size is None else coreset_size
        self.coreset_share = (1.0 if strict else 0.05) if coreset_share is None else coreset_share
        self.scoring = (
            PointScoring.preset(protocol, smooth_neighbours, top_share)
            if strict
            else SampledScoring(
                smooth_samples, 12 if smooth_neighbours is None else smooth_neighbours, top_share, top_points
            )
        )
        self.register_buffer("bank", None)
        self.register_buffer("offsets", None)

    def fixed_settings(self) -> dict[str, Any]:
        """The features and the coreset."""
        features = ("neighbours", "normal_neighbours", "num_groups", "group_size", "voxel_size")
        names = (*features, "coreset_size", "coreset_share")
        return super().fixed_settings() | {name: getattr(self, name) for name in names}

    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Float[Tensor, "G D"]:
        """Features of the groups."""
        return self._describe(self._points(cloud))[1]

    def build(self, seen: Sequence[Seen]) -> None:
        """A coreset of each category's features."""
        groups = [joined(group) for group in by_category(seen, self.categories)]
        self.bank, self.offsets = pack([rows[self._coreset(rows)] for rows in groups])

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Distances in feature space, carried from the centres of the groups to all points."""
        points = self._points(cloud)
        centres, features = self._describe(points)
        found = CategoryBanks(self.bank, self.offsets).recognise(features)
        if self.protocol == "strict":
            points = cloud
        scores = self.scoring.points(found.distance, centres, points)
        score = self.scoring.object(scores)
        if points is not cloud:
            with stage("reprojection"):
                scores = interpolate(scores, points, cloud)
        return Scored(scores, score, found.logits)

    def _points(self, cloud: Float[Tensor, "N 3"]) -> Float[Tensor, "P 3"]:
        """Where histograms are taken: what the voxel filter leaves, or the cloud itself."""
        if self.voxel_size is None:
            return cloud
        strict = self.protocol == "strict"
        radius = centre_and_radius(cloud)[1] if strict else 1.0
        return key_points(cloud, self.voxel_size * radius, strict)

    @stage("point features")
    def _describe(self, points: Float[Tensor, "P 3"]) -> tuple[Float[Tensor, "G 3"], Float[Tensor, "G D"]]:
        """Centres of the groups, and their features."""
        strict = self.protocol == "strict"
        scales = {
            k: fpfh(points, None, k, normal_neighbours=self.normal_neighbours, orient=strict)
            for k in set(self.neighbours)
        }
        centres = points
        if self.num_groups is not None:
            start = None if strict else torch.zeros(1, dtype=torch.int64, device=points.device)
            groups = min(self.num_groups, len(points))
            centres = points[farthest_point_sampling(points[None], groups, start)[0]]
        near = knn(centres[None], points[None], min(self.group_size, len(points)))[1][0]
        return centres, torch.cat([scales[k] for k in self.neighbours], dim=1)[near].mean(1)

    def _coreset(self, rows: Float[Tensor, "N D"]) -> Int[Tensor, " M"]:
        size = max(1, min(self.coreset_size, int(self.coreset_share * len(rows))))
        if self.protocol == "strict":
            return greedy_coreset(rows, size)
        return greedy_coreset(rows, size, projected=None, first=0)
