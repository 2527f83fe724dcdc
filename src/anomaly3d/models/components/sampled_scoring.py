"""From scores at the centres of groups to smooth scores of all points and of the cloud, as Simple3D has them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.ops.fps import farthest_point_sampling
from anomaly3d.ops.grouping import interpolate
from anomaly3d.ops.knn import knn
from anomaly3d.ops.stages import stage


@dataclass(frozen=True)
class SampledScoring:
    """Carry to every point, average around samples of the cloud, and carry these means to every point [code].

    Scores are carried by the three nearest, weighted by inverse squared distances [code; without its floor of 1e-6
    under these, in the unit of the file]. The first sample is the cloud's first point, so the order of the points
    shows. A number here that is larger than a cloud's number of points stands for that [ours].

    Attributes:
        samples: farthest points at which scores are averaged.
        neighbours: points of the cloud nearest to a sample over which they are, itself included.
        top_share: share of the points whose mean is the object's score, the largest scores first; 0 takes the largest
            alone, None as many as `top_points`.
        top_points: number of them.
    """

    samples: int = 1024
    neighbours: int = 12
    top_share: float | None = None
    top_points: int = 80

    def __post_init__(self) -> None:
        check_range(1, inf, smooth_samples=self.samples, smooth_neighbours=self.neighbours, top_points=self.top_points)
        check_range(0, 1, top_share=self.top_share)

    @stage("reprojection")
    def points(
        self, scores: Float[Tensor, " G"], at: Float[Tensor, "G 3"], xyz: Float[Tensor, "N 3"]
    ) -> Float[Tensor, " N"]:
        """Scores at the points `xyz` from those at the centres `at`."""
        rough = interpolate(scores, at, xyz, power=2)
        first = torch.zeros(1, dtype=torch.int64, device=xyz.device)
        samples = xyz[farthest_point_sampling(xyz[None], min(self.samples, len(xyz)), first)[0]]
        near = knn(samples[None], xyz[None], min(self.neighbours, len(xyz)))[1][0]
        return interpolate(rough[near].mean(1), samples, xyz, power=2)

    def object(self, points: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """Score of the cloud."""
        largest = self.top_points if self.top_share is None else ceil(self.top_share * len(points))
        return points.topk(min(max(1, largest), len(points))).values.mean()
