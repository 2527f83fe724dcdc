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
from anomaly3d.models.components.point_features import PointFeature, PointFeatures, every
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, by_category, joined
from anomaly3d.ops.sphere import centre_and_radius


class BTF(BankDetector):
    """Back to the Feature (Horwitz and Hoshen, CVPRW 2023): BTF(Raw) and BTF(FPFH).

    A point's score is the distance of its feature to the nearest of the training clouds, `min_m |f(x) - m|`. Published
    is one bank per category. One detector of several keeps a bank for each, and takes the one with the smallest
    median distance [ours], which on scans from one side is often the wrong one (`CategoryBanks`).

    `paper` is what Real3D-AD's code does [code]: it takes histograms at all points of the file, keeps every hundredth
    for the bank, scores every five-hundredth of a test cloud, and gives the others the nearest one's score; the voxel
    only sets the radii. The price is time: 100,000 histograms took 20 seconds on one busy CPU core. `strict` filters
    clouds to the voxel, takes features at what is left, and carries scores by inverse distances of three [ours].

    Args:
        feature: `raw` coordinates or `fpfh`.
        voxel_size: edge of the voxel filter, at whose points features are taken under `strict`; None takes 0.03 of the
            cloud's radius there [ours]. Under `paper` the unit of the two radii alone, None for 0.5 in the unit of the
            file [code: 0.5 mm].
        normal_radius: neighbourhood of a normal in voxels, at most 30 points [paper: 1 mm, 2 voxels].
        feature_radius: neighbourhood of a histogram in voxels [paper: 2.5 mm, 5 voxels].
        feature_neighbours: most points in it [paper: 100]. On validation clouds 100 did best where clouds are complete,
            20 on scans from one side (`benchmarks/results/classical.md`); under `paper` others than 100 are warned of.
        bank_stride: n, if the bank keeps every n-th feature of a training cloud, in the order of the file under
            `paper`; None takes 100 under `paper` [code of Real3D-AD], 1 under `strict`.
        test_stride: the same of a cloud that is scored; None takes 500 under `paper` [code of Real3D-AD], 1 under
            `strict`. A cloud of few points wants a smaller one.
        reweighting: rows of the bank by which the object score is weighed under `paper` [paper], the nearest among
            them, which the sum leaves out [code]. Under `strict` nothing is weighed: `top_share` makes the score.
        smooth_neighbours: key points over which a score is averaged; None takes 64 under `strict` [ours], 1 under
            `paper`. It and `voxel_size` were chosen on validation clouds (`benchmarks/results/classical.md`), where no
            `top_share` was the best of all.
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
        bank_stride: int | None = None,
        test_stride: int | None = None,
        reweighting: int = 3,
        smooth_neighbours: int | None = None,
        top_share: float | None = None,
        protocol: Protocol = "strict",
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(protocol, memory_gb)
        check_range(2, inf, reweighting=reweighting)
        check_range(1, inf, bank_stride=bank_stride, test_stride=test_stride)
        strict = protocol == "strict"
        self.bank_stride = (1 if strict else 100) if bank_stride is None else bank_stride
        self.test_stride = (1 if strict else 500) if test_stride is None else test_stride
        self.features = PointFeatures.preset(
            feature, protocol, voxel_size, normal_radius, feature_radius, feature_neighbours
        )
        self.scoring = PointScoring.preset(protocol, smooth_neighbours, top_share)
        self.reweighting = reweighting
        self.register_buffer("bank", None)
        self.register_buffer("offsets", None)

    def fixed_settings(self) -> dict[str, Any]:
        """The features, and how many of them are kept."""
        return super().fixed_settings() | self.features.settings() | {"bank_stride": self.bank_stride}

    def scoring_settings(self) -> dict[str, Any]:
        """And how many features are scored, and the rows that weigh an object's score."""
        ours = {"test_stride": self.test_stride, "reweighting": None if self.protocol == "strict" else self.reweighting}
        return super().scoring_settings() | ours

    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Float[Tensor, "K D"]:
        """Features of every `bank_stride`-th key point."""
        return self._describe(cloud, self.bank_stride)[1]

    def build(self, seen: Sequence[Seen]) -> None:
        """All features of each category."""
        self.bank, self.offsets = pack([joined(group) for group in by_category(seen, self.categories)])

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Distances in feature space, carried from the key points to all points."""
        keypoints, features = self._describe(cloud, self.test_stride)
        banks = CategoryBanks(self.bank, self.offsets)
        found = banks.recognise(features)
        points = self.scoring.points(found.distance, keypoints, cloud, self.features.propagate)
        if self.protocol == "strict":
            return Scored(points, self.scoring.object(points), found.logits)
        bank = banks.banks[found.category]
        score = reweighted(features, found.distance, found.index, bank, self.reweighting)
        return Scored(points, score, found.logits)

    def _describe(self, cloud: Tensor, stride: int) -> tuple[Float[Tensor, "K 3"], Float[Tensor, "K D"]]:
        centre, radius = centre_and_radius(cloud)
        keypoints = self.features.keypoints(cloud, radius)
        # A histogram counts all points around, also those that are left out.
        return every(stride, keypoints), every(stride, self.features(keypoints, centre, radius))
