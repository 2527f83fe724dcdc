"""PatchCore on point clouds: a coreset of hand-made features of registered clouds."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.models.components.coreset import greedy_coreset
from anomaly3d.models.components.memory import nearest, pack, unpack
from anomaly3d.models.components.one_by_one import Scored
from anomaly3d.models.components.point_features import PointFeature, PointFeatures
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.registration import Template
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, joined
from anomaly3d.models.components.two_maps import distance_range, in_range, spread_points
from anomaly3d.models.registered_bank import RegisteredBankDetector


class PatchCore(RegisteredBankDetector):
    """PatchCore(FPFH) and PatchCore(FPFH+Raw), as Real3D-AD (Liu et al., NeurIPS 2023) sets them up.

    Clouds are registered to the first template of their category, by this package's registration (as it stands, FPFH
    and RANSAC, a search of rotations, ICP) where public code has RANSAC alone [ours]; a coreset of the training
    features is the bank (Roth et al., PatchCore, CVPR 2022); a point's score is the distance of its feature to the
    bank, `min_m |f(x) - m|`. One detector of several categories takes the one to which the cloud registers best [ours].

    `paper` takes a feature at every point of every cloud, for the bank and for the scores [code of Real3D-AD]; nothing
    is carried. The price is time: that of the histograms, as in `BTF`, and a coreset of all points of a category, which
    may be millions. `strict` filters clouds to the voxel and carries scores as in `BTF` [ours].

    PatchCore(FPFH+Raw) is two banks under `paper`, of registered coordinates and of FPFH, whose maps of squared
    distances are stretched to one range and averaged [code: the script of that name]; an object's score is the mean of
    the largest of both. The ranges are of training distances, as in `Reg3DAD` [ours]. Under `strict` it is one bank
    with coordinates beside the histograms [ours; in Real3D-AD's class, too, where no script calls it].

    Args:
        feature: `fpfh`, or `fpfh_raw`: with coordinates.
        coreset_size: features kept of each category [paper: 10,000].
        voxel_size: edge of the voxel filter, at whose points features are taken under `strict`; None takes 0.03 of the
            template's radius there [ours]. Under `paper` the unit of the two radii alone, None for 0.5 in the unit of
            the file [code: 0.5 mm].
        normal_radius: neighbourhood of a normal in voxels, at most 30 points [paper: 1 mm, 2 voxels].
        feature_radius: neighbourhood of a histogram in voxels [paper: 2.5 mm, 5 voxels].
        feature_neighbours: most points in it [paper: 100]; 20 on scans from one side, as in `BTF`.
        raw_weight: factor of the coordinates beside FPFH in one bank; None takes 165 per radius under `strict` [ours],
            two banks under `paper` [code]. The function that no script calls has 11 copies of each coordinate, a
            factor of the root of 11 per unit of the file.
        hypotheses: triples of correspondences that RANSAC draws [code of Real3D-AD: 100,000].
        smooth_neighbours: key points over which a score is averaged; None takes 64 under `strict` [ours], 1 under
            `paper`.
        top_share: share of the largest point scores whose mean is the object's; None takes 0.01 under `strict` [ours]
            and the largest alone under `paper` [paper].
        protocol: `strict` does not depend on the order of the points, the unit of the file, or the signs of normals.
        memory_gb: most memory for the training clouds, and for their features.
    """

    bank: Float[Tensor, "M D"]
    offsets: Int[Tensor, "C+1"]
    coordinates: Float[Tensor, "M 3"]  # of two banks, as are the next two
    coordinate_offsets: Int[Tensor, "C+1"]
    ranges: Float[Tensor, "C 2 2"]  # per category, of squared distances of coordinates and of FPFH: smallest, largest

    def __init__(
        self,
        *,
        feature: PointFeature = "fpfh",
        coreset_size: int = 10_000,
        voxel_size: float | None = None,
        normal_radius: float = 2.0,
        feature_radius: float = 5.0,
        feature_neighbours: int = 100,
        raw_weight: float | None = None,
        hypotheses: int = 100_000,
        smooth_neighbours: int | None = None,
        top_share: float | None = None,
        protocol: Protocol = "strict",
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(hypotheses, protocol, memory_gb)
        check_range(1, inf, coreset_size=coreset_size)
        self.two_banks = feature == "fpfh_raw" and protocol == "paper" and raw_weight is None
        kind = "fpfh" if self.two_banks else feature
        self.features = PointFeatures.preset(
            kind, protocol, voxel_size, normal_radius, feature_radius, feature_neighbours, raw_weight
        )
        self.feature = feature
        self.coreset_size = coreset_size
        self.scoring = PointScoring.preset(protocol, smooth_neighbours, top_share)
        for name in ("bank", "offsets", "coordinates", "coordinate_offsets", "ranges"):
            self.register_buffer(name, None)

    def fixed_settings(self) -> dict[str, Any]:
        """The features and the coreset."""
        ours = {"feature": self.feature, "coreset_size": self.coreset_size, "two_banks": self.two_banks}
        return super().fixed_settings() | self.features.settings() | ours

    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Float[Tensor, "N 3"]:
        """The points; features need the template, which is known only at the end."""
        return cloud

    def build(self, seen: Sequence[Seen]) -> None:
        """A coreset of each category's features; of two banks one of the coordinates, and the ranges of both."""
        banks, coordinates, ranges = [], [], []
        for template, placed in self.aligned_groups(seen):
            features = self.collect(self._describe(cloud.kept, template)[1] for cloud in placed)
            kept = greedy_coreset(features, self.coreset_size)
            banks.append(features[kept])
            if self.two_banks:
                xyz = joined(placed)
                at = spread_points(xyz, self.coreset_size)
                coordinates.append(xyz[at])
                ranges.append(torch.stack([distance_range(xyz, at), distance_range(features, kept)]).square())
        self.bank, self.offsets = pack(banks)
        if self.two_banks:
            self.coordinates, self.coordinate_offsets = pack(coordinates)
            self.ranges = torch.stack(ranges)

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Distances in feature space, carried from the key points to all points."""
        placed, template, category, logits = self.placed(cloud)
        keypoints, features = self._describe(placed, template)
        distance, _ = nearest(features, unpack(self.bank, self.offsets)[category])
        maps = [distance[:, 0]]
        if self.two_banks:
            away, _ = nearest(keypoints, unpack(self.coordinates, self.coordinate_offsets)[category])
            both = zip((away[:, 0], maps[0]), self.ranges[category], strict=True)
            maps = [in_range(one.square(), ends) for one, ends in both]
        carried = torch.stack([self.scoring.points(one, keypoints, placed, self.features.propagate) for one in maps])
        score = torch.stack([self.scoring.object(one) for one in carried]).mean()
        return Scored(carried.mean(0), score, logits)

    def _describe(self, placed: Tensor, template: Template) -> tuple[Float[Tensor, "K 3"], Float[Tensor, "K D"]]:
        keypoints = self.features.keypoints(placed, template.radius)
        return keypoints, self.features(keypoints, template.centre.to(placed.dtype), template.radius)
