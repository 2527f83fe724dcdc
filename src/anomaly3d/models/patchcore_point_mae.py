"""PatchCore(PointMAE): a bank of frozen Point-MAE tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.errors import InputError, check_range
from anomaly3d.models.backbones.point_mae import Size
from anomaly3d.models.backbones.weights import frozen_point_mae
from anomaly3d.models.components.completion import COMPLETE_GAP, make_completion, template_frame
from anomaly3d.models.components.coreset import greedy_coreset
from anomaly3d.models.components.memory import CategoryBanks, nearest, pack, reweighted, unpack
from anomaly3d.models.components.one_by_one import Scored
from anomaly3d.models.components.patches import Frame, PatchSampler, own_frame
from anomaly3d.models.components.registration import Template
from anomaly3d.models.components.scoring import Normalise, Propagate, Protocol, Smooth, TokenScoring
from anomaly3d.models.components.seen import Seen, by_category
from anomaly3d.models.registered_bank import RegisteredBankDetector
from anomaly3d.types import PatchGroups, PointCloudBatch


class PatchCorePointMAE(RegisteredBankDetector):
    """PatchCore(PointMAE), as Real3D-AD (Liu et al., NeurIPS 2023) sets it up.

    A patch's score is the distance of its token to the nearest token of the training clouds, `min_m |f(p) - m|`,
    smoothed over its neighbours and carried to the points. Tokens see the pose: clouds in arbitrary poses are
    registered to the first template of their category [paper], by this package's registration where public code has
    RANSAC alone [ours], and the category is then the one that fits best;
    without registration it is the one whose bank has the smallest median distance [ours], which on scans from one side
    is often the wrong one (`CategoryBanks`).

    Under `strict` a cloud is seen in the unit sphere, as the backbone that comes with the package was trained. Under
    `paper` it is centred alone, a registered one about its template's mean, and tokens are of lengths in the unit of
    the file [code of Real3D-AD]. The shipped backbone has never seen such lengths: `paper` is meant for the published
    weights (`backbone_weights`), with which the published numbers were made.

    Args:
        num_groups: patches per cloud; None takes 16384 under `paper` [code of Real3D-AD], 1024 under `strict` [ours].
        group_size: points per patch [code of Real3D-AD: 128].
        register: bring clouds into the pose of the first template [paper]. Needless where clouds stand alike.
        hypotheses: triples of correspondences that RANSAC draws [code of Real3D-AD: 100,000].
        resolution: edge of a voxel filter of registered clouds, in units of the template's radius, whose frame they are
            then seen in; None leaves every point, and each cloud its own frame. Takes `register` [ours].
        complete: join to a test cloud what its template has where the cloud shows nothing, for scans from one side;
            missing parts are then no defects. Takes `register` and `resolution` [ours].
        complete_gap: how far from the cloud that begins, in units of `resolution` [ours].
        coreset_size: tokens kept of each category [paper: 10,000].
        coreset_share: share of the tokens kept of each category, at most `coreset_size` [ours].
        voxel_size: edge of the voxel filter in file units; None leaves every point [ours].
        pad: accept clouds with fewer than `group_size` points [ours].
        backbone_size: architecture of the frozen Point-MAE; None takes that of the weights.
        backbone_weights: `small`, which come with the package; a file; or `random`.
        backbone_blocks: blocks whose normalised tokens are joined, counted from 1. None takes those at a third, two
            thirds and the whole of the backbone's depth under `paper`, 4, 8, 12 of 12 [code of Real3D-AD]; the fourth
            under `strict`: on validation clouds blocks 1, 2 and 4 of the shipped 6 cannot be told apart
            (`benchmarks/results/sedir.md`) [ours].
        protocol: `strict` does not depend on the order of the points; `paper` starts the sampling at the file's first
            point, leaves lengths in the unit of the file, and neither smooths nor interpolates.
        normalise: override the protocol's normalisation of token errors; `none` in both.
        smooth: override the protocol's smoothing: `spatial` under `strict` [ours], `none` under `paper`.
        propagate: override the protocol's propagation from tokens to points: `inverse_distance` under `strict` [ours],
            `nearest` under `paper` [code of Real3D-AD].
        smooth_kernel: tokens under the smoothing Gaussian [ours].
        smooth_sigma: its width in mean distances between neighbouring centres [ours].
        memory_gb: most memory for the training clouds, and for their tokens.
    """

    bank: Float[Tensor, "M D"]
    offsets: Int[Tensor, "C+1"]

    def __init__(
        self,
        *,
        num_groups: int | None = None,
        group_size: int = 128,
        register: bool = True,
        hypotheses: int = 100_000,
        resolution: float | None = None,
        complete: bool = False,
        complete_gap: float = COMPLETE_GAP,
        coreset_size: int = 10_000,
        coreset_share: float = 1.0,
        voxel_size: float | None = None,
        pad: bool = False,
        backbone_size: Size | None = None,
        backbone_weights: str = "small",
        backbone_blocks: Sequence[int] | None = None,
        protocol: Protocol = "strict",
        normalise: Normalise | None = None,
        smooth: Smooth | None = None,
        propagate: Propagate | None = None,
        smooth_kernel: int = 11,
        smooth_sigma: float | None = None,
        memory_gb: float = 4.0,
    ) -> None:
        super().__init__(hypotheses, protocol, memory_gb)
        strict = protocol == "strict"
        num_groups = (1024 if strict else 16384) if num_groups is None else num_groups
        check_range(1, float("inf"), num_groups=num_groups, group_size=group_size, coreset_size=coreset_size)
        check_range(1e-6, 1, coreset_share=coreset_share)
        check_range(1e-6, float("inf"), voxel_size=voxel_size)
        self.scoring = TokenScoring.preset(
            protocol,
            normalise or "none",
            smooth or ("spatial" if strict else "none"),
            propagate,
            smooth_kernel,
            smooth_sigma,
        )
        if resolution is not None and not register:
            raise InputError("resolution: in units of a template's radius; set register to true, or drop it")
        if resolution is not None and not strict:
            raise InputError("resolution: under protocol paper clouds are scored as they come; drop it, or take strict")
        self.in_file_unit = not strict
        self.register_clouds = register
        self.completion = make_completion(register, complete, protocol, resolution, complete_gap)
        self.coreset_size = coreset_size
        self.coreset_share = coreset_share
        self.patches = PatchSampler(num_groups, group_size, voxel_size, canonical=strict, pad=pad)
        self.backbone = frozen_point_mae(backbone_size, backbone_weights)
        self.backbone_blocks = self.usual_blocks() if backbone_blocks is None else tuple(backbone_blocks)
        self.register_buffer("bank", None)
        self.register_buffer("offsets", None)

    # -- what a subclass may choose otherwise ------------------------------------------------------------------

    def usual_blocks(self) -> tuple[int, ...]:
        """What `backbone_blocks` of None takes."""
        return (4,) if self.protocol == "strict" else thirds(self.backbone.depth)

    @property
    def reweighting(self) -> int | None:
        """Rows of the bank by which the object score is weighed; None takes the largest point score."""
        return None

    # -- a bank of tokens --------------------------------------------------------------------------------------

    def fixed_settings(self) -> dict[str, Any]:
        """The patches, their pose, the blocks of the backbone, and the coreset."""
        return super().fixed_settings() | {
            "register": self.register_clouds,
            "resolution": self.completion.resolution,
            "num_groups": self.patches.num_groups,
            "group_size": self.patches.group_size,
            "voxel_size": self.patches.voxel_size,
            "backbone_blocks": self.backbone_blocks,
            "coreset_size": self.coreset_size,
            "coreset_share": self.coreset_share,
        }

    def scoring_settings(self) -> dict[str, Any]:
        """And how a cloud is completed."""
        ours = {"complete": self.completion.complete, "complete_gap": self.completion.gap}
        return super().scoring_settings() | ours | {"reweighting": self.reweighting}

    def describe(self, cloud: Float[Tensor, "N 3"], name: str) -> Tensor:
        """The points where they are registered first, else the tokens."""
        if not self.register_clouds:
            return self.tokens(cloud, name)[1]
        self.patches.frame(PointCloudBatch.single(cloud, name))  # refuses too small a cloud while its name is known
        return cloud

    def build(self, seen: Sequence[Seen]) -> None:
        """A coreset of each category's tokens."""
        if self.register_clouds:
            kept = (self.placed_tokens(placed, template) for template, placed in self.aligned_groups(seen))
        else:
            kept = ((cloud.kept for cloud in group) for group in by_category(seen, self.categories))
        every = (self.collect(tokens) for tokens in kept)
        self.bank, self.offsets = pack([tokens[self.coreset(tokens)] for tokens in every])

    def score_cloud(self, cloud: Float[Tensor, "N 3"], name: str) -> Scored:
        """Distances of tokens, smoothed and carried to the points."""
        if self.register_clouds:
            cloud, template, category, logits = self.placed(cloud)
            groups, tokens = self.seen_tokens(cloud, name, template)
            bank = unpack(self.bank, self.offsets)[category]
            errors, index = (part[:, 0] for part in nearest(tokens, bank))
        else:
            groups, tokens = self.tokens(cloud, name)
            banks = CategoryBanks(self.bank, self.offsets)
            category, errors, index, logits = banks.recognise(tokens)
            bank = banks.banks[category]
        scored = self.scoring(errors[None], groups, PointCloudBatch.single(cloud, name))
        score = scored.object_scores[0]
        if self.reweighting is not None:
            score = reweighted(tokens, errors, index, bank, self.reweighting)
        return Scored(scored.point_scores, score, logits)

    def tokens(
        self, cloud: Float[Tensor, "N 3"], name: str, frame: Frame | None = None
    ) -> tuple[PatchGroups, Float[Tensor, "G D"]]:
        """Patches of a cloud, in its own frame or another, and their frozen tokens; under `paper` centred alone."""
        if self.in_file_unit:
            frame = (frame or own_frame(cloud))._replace(radius=cloud.new_ones(()))
        groups = self.patches(PointCloudBatch.single(cloud, name), frame and [frame])
        tokens = self.backbone(groups.points, groups.centres, self.backbone_blocks)
        return groups, torch.cat(tokens, dim=-1)[0].float()

    def seen_tokens(
        self, placed: Float[Tensor, "N 3"], name: str, template: Template
    ) -> tuple[PatchGroups, Float[Tensor, "G D"]]:
        """Of a registered cloud that is scored."""
        return self.tokens(self.completion.completed(placed, template), name, self._frame(template, placed))

    def placed_tokens(self, clouds: Sequence[Seen], template: Template) -> Iterator[Float[Tensor, "G D"]]:
        """Tokens of a category's registered training clouds, one after the other."""
        for cloud in clouds:
            thin = self.completion.thinned(cloud.kept, template)
            name = f"{cloud.sample_id}, at resolution {self.completion.resolution}"
            yield self.tokens(thin, name, self._frame(template, cloud.kept))[1]

    def _frame(self, template: Template, cloud: Tensor) -> Frame | None:
        """The template's at a resolution or under `paper`; elsewhere None, each cloud's own."""
        if self.completion.resolution is None and not self.in_file_unit:
            return None
        return template_frame(template, cloud)

    def coreset(self, tokens: Float[Tensor, "N D"]) -> Int[Tensor, " M"]:
        """Which of a category's tokens are kept."""
        size = min(self.coreset_size, round(self.coreset_share * len(tokens)))
        return greedy_coreset(tokens, max(1, size))


def thirds(depth: int) -> tuple[int, int, int]:
    """The blocks at a third, two thirds and the whole of a backbone's depth."""
    return depth // 3, 2 * depth // 3, depth
