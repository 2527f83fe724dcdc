"""BTF: a memory bank of hand-made point features, without registration."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.components.memory import CategoryBanks, pack, reweighted
from anomaly3d.models.components.one_by_one import Scored
from anomaly3d.models.components.point_features import PointFeature, PointFeatures, centre_and_radius
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, by_category, joined


class BTF(BankDetector):
    """Back to the Feature (Horwitz and Hoshen, CVPRW 2023): BTF(Raw) and BTF(FPFH).

    A point's score is the distance of its feature to the nearest of the training clouds, `min_m |f(x) - m|`. Published
    is one bank per category. One detector of several keeps a bank for each, and takes the one with the smallest
    median distance [ours], which on scans from one side is often the wrong one (`CategoryBanks`).

    Published code takes histograms at points of the file, every hundredth for the bank and every five-hundredth of a
    test cloud, and gives the others the nearest one's score; its voxel of 0.5 mm only sets the radii. Ours filters the
    clouds to that voxel, takes features at what is left, and carries scores by inverse distances of three [ours, under
    `paper` too: for speed].

    Args:
        feature: `raw` coordinates or `fpfh`.
        voxel_size: edge of the voxel filter, at whose points features are taken. None takes 0.5 in the unit of the file
            under `paper` [paper: 0.5 mm], 0.03 of the cloud's radius under `strict` [ours].
        normal_radius: neighbourhood of a normal in voxels, at most 30 points [paper: 1 mm, 2 voxels].
        feature_radius: neighbourhood of a histogram in voxels [paper: 2.5 mm, 5 voxels].
        feature_neighbours: most points in it [paper: 100]. On validation clouds 100 did best where clouds are complete,
            20 on scans from one side (`benchmarks/results/classical.md`).
        reweighting: rows of the bank by which the object score is weighed under `paper` [paper], the nearest among
            them, which the sum leaves out [code]. Under `strict` nothing is weighed: `top_share` makes the score.
        smooth_neighbours: key points over which a score is averaged; None takes 16 under `strict` [ours], 1 under
            `paper`. Neither it nor `top_share` was chosen by a measurement.
        top_share: share of the largest point scores whose mean is the object's under `strict`; None takes 0.01 [ours].
        protocol: `strict` does not depend on the order of the points, the unit of the file, or the signs of normals.
        memory_gb: most memory for the features of the training clouds.
    """

    bank: Float[Tensor, "M D"]
    offsets: Int[Tensor, "C+1"]

    def __init__(
        self,
        *,
        feature: PointFeature = "fpfh",
        voxel_size: float | None = None,
        normal_radius: float = 2.0,
        feature_radius: float = 5.0,
        feature_neighbours: int = 100,
        reweighting: int = 3,
        smooth_neighbours: int | None = None,
        top_share: float | None = None,
        protocol: Protocol = "strict",
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(protocol, memory_gb)
        check_range(2, inf, reweighting=reweighting)
        self.features = PointFeatures.preset(
            feature, protocol, voxel_size, normal_radius, feature_radius, feature_neighbours
        )
        self.scoring = PointScoring.preset(protocol, smooth_neighbours, top_share)
        self.reweighting = reweighting
        self.register_buffer("bank", None)
        self.register_buffer("offsets", None)

    def fixed_settings(self) -> dict[str, Any]:
        """The features."""
        return super().fixed_settings() | self.features.settings()

    def scoring_settings(self) -> dict[str, Any]:
        """And the rows that weigh an object's score."""
        return super().scoring_settings() | {"reweighting": None if self.protocol == "strict" else self.reweighting}

    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Float[Tensor, "K D"]:
        """Features of the key points."""
        return self._describe(cloud)[1]

    def build(self, seen: Sequence[Seen]) -> None:
        """All features of each category."""
        self.bank, self.offsets = pack([joined(group) for group in by_category(seen, self.categories)])

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Distances in feature space, carried from the key points to all points."""
        keypoints, features = self._describe(cloud)
        banks = CategoryBanks(self.bank, self.offsets)
        found = banks.recognise(features)
        points = self.scoring.points(found.distance, keypoints, cloud)
        if self.protocol == "strict":
            return Scored(points, self.scoring.object(points), found.logits)
        bank = banks.banks[found.category]
        score = reweighted(features, found.distance, found.index, bank, self.reweighting)
        return Scored(points, score, found.logits)

    def _describe(self, cloud: Tensor) -> tuple[Float[Tensor, "K 3"], Float[Tensor, "K D"]]:
        centre, radius = centre_and_radius(cloud)
        keypoints = self.features.keypoints(cloud, radius)
        return keypoints, self.features(keypoints, centre, radius)
