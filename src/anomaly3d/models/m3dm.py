"""M3DM on points alone: a bank of Point-MAE tokens of several depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anomaly3d.models.components.scoring import Propagate
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE


class M3DM(PatchCorePointMAE):
    """M3DM(PointMAE) and M3DM(PointBERT) (Wang et al., CVPR 2023), its point branch as Real3D-AD runs it.

    Tokens of blocks 4, 8 and 12 side by side, a tenth of them as the coreset, no registration; scores are interpolated
    to the points. PointBERT is another file of backbone weights.

    Args:
        num_groups: patches per cloud [paper: 16384].
        group_size: points per patch [paper: 128].
        coreset_size: most tokens kept of each category [ours].
        coreset_share: share of the tokens kept [paper: 0.1].
        backbone_blocks: blocks whose normalised tokens are joined [paper: 4, 8, 12 of 12]; the shipped backbone has 6:
            2, 4, 6 [ours].
        propagate: from tokens to points [paper: inverse distances].
        settings: all others of `PatchCorePointMAE`.
    """

    def __init__(
        self,
        *,
        num_groups: int = 16384,
        group_size: int = 128,
        coreset_size: int = 1_000_000,
        coreset_share: float = 0.1,
        backbone_blocks: Sequence[int] = (2, 4, 6),
        propagate: Propagate = "inverse_distance",
        **settings: Any,
    ) -> None:
        super().__init__(
            num_groups=num_groups,
            group_size=group_size,
            register=False,
            coreset_size=coreset_size,
            coreset_share=coreset_share,
            backbone_blocks=backbone_blocks,
            propagate=propagate,
            **settings,
        )
