"""Detectors that learn by gradient and may register clouds first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.models.backbones.point_mae import PointMAE
from anomaly3d.models.base import Detector
from anomaly3d.models.components.placement import PlacedClouds, Placement
from anomaly3d.models.components.sized_buffers import part_of
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


class PlacingDetector(Detector):
    """Base of detectors with a `backbone` and a `placement`; with None clouds stay as they are."""

    placement: Placement | None
    backbone: PointMAE
    offset_share: float = 0.0

    @property
    def learns(self) -> bool:
        """Not in the first pass, which finds the templates."""
        return self.placement is None or self.placement.ready

    def look(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        """The step of such a pass; its `loss` is zero, but of all parameters: DDP waits for a gradient of each."""
        assert self.placement is not None
        self.placement.observe(batch)
        return {"loss": sum((0 * p.sum() for p in self.parameters() if p.requires_grad), torch.zeros(()))}

    def fixed_settings(self) -> dict[str, Any]:
        """Whether clouds are registered, to what density they are filtered then, and how distances are taken."""
        placement = self.placement
        offsets = placement and placement.offsets
        distances = {"offset_edge": offsets.edge, "offset_neighbours": offsets.neighbours} if offsets else {}
        return {
            "register": placement is not None,
            "resolution": placement and placement.completion.resolution,
            **distances,
        }

    def scoring_settings(self) -> dict[str, Any]:
        """And how clouds are registered and completed, and the share of offsets."""
        ours: dict[str, Any] = {"offset_share": self.offset_share}
        if self.placement is not None:
            completion = self.placement.completion
            ours |= {"complete": completion.complete, "complete_gap": completion.gap}
            ours["hypotheses"] = self.placement.templates.settings.hypotheses
        return super().scoring_settings() | ours

    def finish_pass(self) -> bool:
        """Keep the templates after the first pass. Learning goes on."""
        if self.placement is not None:
            self.placement.finish_pass(self.categories)
        return False

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """For the templates."""
        if self.placement is not None:
            self.placement.make_room(part_of(state, "placement."))

    def _placed_by(self) -> list[nn.Module]:
        return [] if self.placement is None else [self.placement]

    def _frozen_parts(self) -> list[nn.Module]:
        return [self.backbone, *self._placed_by()]

    def place_known(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> PlacedClouds:
        """A training cloud on its category's template."""
        if self.placement is None:
            return _unplaced(PointCloudBatch.single(cloud, name))
        return self.placement.known(cloud, name, category)

    def place_predicted(self, batch: PointCloudBatch) -> PlacedClouds:
        """Clouds that are scored, on the templates that fit them best."""
        return _unplaced(batch) if self.placement is None else self.placement.predicted(batch)

    def with_offsets(
        self,
        prediction: AnomalyPrediction,
        placed: PointCloudBatch,
        placed_as: Float[Tensor, "B C"] | None,
        logarithm: bool = False,
    ) -> AnomalyPrediction:
        """Scores joined with the distances from the training clouds; the object has the largest.

        Distances are about 1 where nothing is wrong, as scores are to be; their logarithm joins scores that are logits.
        """
        if self.placement is None or placed_as is None or not self.offset_share:
            return prediction
        clouds = zip(placed.clouds(), placed.split(prediction.point_scores), placed_as.argmax(1).tolist(), strict=True)
        joined = []
        for xyz, scores, category in clouds:
            offset = self.placement.offset(xyz, category).to(scores)
            joined.append(torch.lerp(scores, offset.clamp(min=0.01).log() if logarithm else offset, self.offset_share))
        objects = torch.stack([scores.max() for scores in joined])
        return replace(prediction, point_scores=torch.cat(joined), object_scores=objects)


def _unplaced(batch: PointCloudBatch) -> PlacedClouds:
    return PlacedClouds(batch, batch, None, None)
