"""M3DM on points alone: a bank of Point-MAE tokens of several depths."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from anomaly3d.errors import check_range
from anomaly3d.models.components.scoring import Propagate, Protocol
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE, thirds


class M3DM(PatchCorePointMAE):
    """M3DM(PointMAE) and M3DM(PointBERT) (Wang et al., CVPR 2023), its point branch as Real3D-AD runs it.

    Tokens of blocks 4, 8 and 12 side by side, a tenth of them as the coreset, no registration. PointBERT is another
    file of backbone weights.

    What differs from Real3D-AD's code under `paper`, too: its coreset starts at the first row, in a sparse random
    projection (`eps` 0.9) and half precision, ours as in `greedy_coreset`; and it measures points at the centres of
    the patches alone, ours are all points of a cloud.

    Args:
        num_groups: patches per cloud; None takes 16384 under `paper` [code of Real3D-AD; M3DM's own: 1024], 4096 under
            `strict` [ours].
        group_size: points per patch [code of both: 128].
        coreset_size: most tokens kept of each category [ours].
        coreset_share: share of the tokens kept [paper: 0.1].
        backbone_blocks: blocks whose normalised tokens are joined; None takes those at a third, two thirds and the
            whole of the backbone's depth: 4, 8, 12 of 12 [paper]; of the shipped 6 they are 2, 4, 6 [ours].
        propagate: scores from tokens to points; None takes `inverse_distance` under `strict` [ours: so the paper
            interpolates features], `nearest` under `paper` [code of Real3D-AD].
        reweighting: rows of the bank by which the object score is weighed under `paper` [code: 3], as in `BTF`; under
            `strict` it is the largest point score.
        protocol: as in `PatchCorePointMAE`.
        settings: all others of `PatchCorePointMAE`; no `register`, nor what takes it.
    """

    def __init__(
        self,
        *,
        num_groups: int | None = None,
        group_size: int = 128,
        coreset_size: int = 1_000_000,
        coreset_share: float = 0.1,
        backbone_blocks: Sequence[int] | None = None,
        propagate: Propagate | None = None,
        reweighting: int = 3,
        protocol: Protocol = "strict",
        **settings: Any,
    ) -> None:
        check_range(2, inf, reweighting=reweighting)
        super().__init__(
            num_groups=(4096 if protocol == "strict" else 16384) if num_groups is None else num_groups,
            group_size=group_size,
            register=False,
            coreset_size=coreset_size,
            coreset_share=coreset_share,
            backbone_blocks=backbone_blocks,
            propagate=propagate,
            protocol=protocol,
            **settings,
        )
        self.weighing_rows = reweighting

    def usual_blocks(self) -> tuple[int, ...]:
        """Under `strict`, too, at a third, two thirds and the whole of the depth."""
        return thirds(self.backbone.depth)

    @property
    def reweighting(self) -> int | None:
        """None under `strict`."""
        return None if self.protocol == "strict" else self.weighing_rows
