"""Template distance: register a cloud, and measure how far each point lies from the nearest training cloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.models.components.one_by_one import Scored
from anomaly3d.models.components.point_features import FEW
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, joined
from anomaly3d.models.registered_bank import RegisteredBankDetector
from anomaly3d.ops.stages import stage
from anomaly3d.ops.tree import search
from anomaly3d.ops.voxel import voxel_filter


class TemplateDistance(RegisteredBankDetector):
    """Distance to the nearest point of the registered training clouds, `min_t min_j |T x_i - y_tj|` [ours].

    No paper's table has this row, and every table needs it: where parts are rigid, a learned method that ends below it
    has shown nothing yet. Training clouds of a category are brought into the pose of the first, so that a test cloud is
    registered once per category, to the merged clouds (global registration and ICP, `components/registration.py`),
    where ICP to each training cloud and the minimum over them would take as many times as long [ours]; the category is
    the one with the smallest residual.

    Args:
        hypotheses: triples of correspondences that RANSAC draws; fewer are faster, and miss the pose more often [ours].
        voxel_size: edge of a voxel filter, at whose points distances are taken, of the template's radius; None takes
            0.03 under `strict` and 0, which is every point, under `paper` [ours]. Without it an average over a number
            of points is one over less and less of a surface, the denser a cloud is.
        smooth_neighbours: of these points those over which a distance is averaged; None takes 16 under `strict`, 1
            under `paper` [ours]. Chosen with the filter on validation clouds (`benchmarks/results/classical.md`).
        top_share: share of the largest point scores whose mean is the object's; None takes 0.01 under `strict` and the
            largest alone under `paper` [ours].
        protocol: `strict` does not depend on the order of the points [ours]. `paper`, of none, is the plain distance
            and its maximum.
        memory_gb: most memory for the training clouds.
    """

    def __init__(
        self,
        *,
        hypotheses: int = 100_000,
        voxel_size: float | None = None,
        smooth_neighbours: int | None = None,
        top_share: float | None = None,
        protocol: Protocol = "strict",
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(hypotheses, protocol, memory_gb)
        check_range(0, 1, voxel_size=voxel_size)
        self.voxel_size = (0.03 if protocol == "strict" else 0.0) if voxel_size is None else voxel_size
        neighbours = 16 if smooth_neighbours is None and protocol == "strict" else smooth_neighbours
        self.scoring = PointScoring.preset(protocol, neighbours, top_share)

    def scoring_settings(self) -> dict[str, Any]:
        """And the filter."""
        return super().scoring_settings() | {"voxel_size": self.voxel_size}

    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Float[Tensor, "N 3"]:
        """The points."""
        return cloud

    def build(self, seen: Sequence[Seen]) -> None:
        """Merge the clouds of each category."""
        self.templates.keep([joined(placed) for _, placed in self.aligned_groups(seen)])

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Distances in the unit of the file."""
        placed, template, _, logits = self.placed(cloud)
        placed = placed.cpu()  # smoothed where the tree is: brute force over millions of points is slower, on any GPU
        with stage("voxel filter"):
            at = voxel_filter(placed, self.voxel_size * template.radius) if self.voxel_size else placed
        if len(at) < FEW:  # a crumb beside its template
            at = placed
        with stage("nearest neighbours"):
            distance, _ = search(template.tree, at.numpy())
        points = self.scoring.points(torch.from_numpy(distance).to(at), at, placed).to(cloud)
        return Scored(points, self.scoring.object(points), logits)
