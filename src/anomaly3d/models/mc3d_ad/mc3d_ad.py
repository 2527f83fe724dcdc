"""MC3D-AD, the detector: rebuild frozen tokens of registered clouds from the patches that geometry leaves visible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any, Literal, NamedTuple, get_args
from zlib import crc32

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anomaly3d.errors import InputError, check_choice, check_range
from anomaly3d.models.backbones.point_mae import Size
from anomaly3d.models.backbones.weights import frozen_point_mae
from anomaly3d.models.components.cache import FrozenCache
from anomaly3d.models.components.jitter import FeatureJitter
from anomaly3d.models.components.one_by_one import Scored, score_one_by_one
from anomaly3d.models.components.patches import PatchSampler
from anomaly3d.models.components.placement import COMPLETE_GAP, PlacedClouds, make_placement
from anomaly3d.models.components.registration import RegistrationSettings
from anomaly3d.models.components.scoring import Normalise, Propagate, Protocol, Smooth, TokenScoring
from anomaly3d.models.components.standardise import TokenStandardiser
from anomaly3d.models.mc3d_ad.decoder import GlobalQueryDecoder
from anomaly3d.models.mc3d_ad.encoder import LocalEncoder
from anomaly3d.models.mc3d_ad.file_window import average_along_rows
from anomaly3d.models.mc3d_ad.mask import guide, visible_patches
from anomaly3d.models.placing import PlacingDetector
from anomaly3d.ops.stages import stage
from anomaly3d.types import AnomalyPrediction, PatchGroups, PointCloudBatch

TestMasks = Literal["both", "drawn", "none"]


class FrozenView(NamedTuple):
    """All that the trainable part sees of clouds, the same at every step."""

    tokens: Float[Tensor, "B G D"]
    centres: Float[Tensor, "B G 3"]
    variation: Float[Tensor, "B G"]


class MC3DAD(PlacingDetector):
    """Reconstruct frozen Point-MAE tokens of all categories by one masked transformer.

    Cheng et al., MC3D-AD: A Unified Geometry-aware Reconstruction Model for Multi-category 3D Anomaly Detection, IJCAI
    2025 (arXiv 2505.01969). A cloud is registered to a template of its category and cut into patches; the tokens f of
    the frozen backbone are jittered, encoded under a mask that hides 40 % of the patches as keys, either those where
    the surface varies most or those where it varies least (`mask.py`, `encoder.py`), and rebuilt by a decoder whose
    queries are positions (`decoder.py`). The loss is the mean square of `fh - f`; a patch's error `|fh - f|`.

    Grades of the defaults: [paper] written there, [code] the authors' public code and configurations, [ours].

    What we decided [ours]: clouds are scaled to the unit sphere, registered ones under `strict` to their template's,
    and the registration is this package's (FPFH, RANSAC with a fixed seed, ICP; lengths relative to the cloud), not the
    published one in file units. The first pass over the training clouds finds the templates, each category's first
    cloud by sample id, and learns nothing. The learning rate falls along a cosine; the published one drops to a tenth
    after 800 of 1000 epochs. There is no class head: published configurations leave its loss out, and nothing else
    reads it; nor the decoder's learned query embeddings, which no published computation uses. `standardise` and
    `test_masks` of `strict` were chosen on validation clouds, made of the demo's training clouds
    (`benchmarks/results/mc3d_ad.md`).

    Args:
        num_groups: patches per cloud [code: 4096 for Real3D-AD, 1024 for Anomaly-ShapeNet].
        group_size: points per patch [code].
        width: channels of the transformer [code].
        encoder_depth: layers of the encoder [code].
        decoder_depth: layers of the decoder [code].
        heads: attention heads [code].
        hidden: channels inside the feed-forward blocks [code].
        dropout: dropout rate, attention weights excepted [code: these included].
        mask_ratio: share of the patches that the mask hides [code].
        test_masks: masks when scoring. `both`: the error is the mean under the two masks [ours]; `drawn`: one of them
            by chance [code], here by a hash of the sample id, so that a score repeats; `none`: every patch is visible
            [ours]. None takes the protocol's: `both` under `strict`, `drawn` under `paper`.
        geometry_radius: neighbourhood of the mask's guide in mean nearest-neighbour distances of the centres [code];
            lower it with few centres, where 7 would span the whole object.
        jitter_scale: strength of the noise on the tokens in training [code].
        jitter_probability: chance of a cloud to get it [code].
        register: bring clouds into the pose of their category's template [paper]; needs open3d. Needless where clouds
            stand alike. When scoring, the category is predicted: the one whose template fits best. Only under `paper`
            it is the true one, as published.
        complete: join to a test cloud what its template has where the cloud shows nothing, for scans from one side;
            missing parts are then no defects. Takes `register` [ours].
        complete_gap: how far from the cloud that begins, in units of `resolution` [ours].
        resolution: edge of the voxel filter of registered clouds, in units of the template's radius [ours].
        hypotheses: triples of correspondences that RANSAC draws [code].
        frozen_cache_gb: memory for the frozen tokens of training clouds [ours]; 0 encodes them at every step.
        voxel_size: edge of the voxel filter in file units; None leaves every point [code: training clouds of Real3D-AD
            are thinned out beforehand].
        pad: accept clouds with fewer than `group_size` points.
        backbone_size: architecture of the frozen Point-MAE [code: base]; None takes that of the weights.
        backbone_weights: `small`, which come with the package [ours]; a file; or `random`.
        backbone_blocks: blocks whose normalised tokens are joined, counted from 1 [code].
        standardise: rebuild tokens in units of their variation over the training clouds [ours]; by default under
            `strict` and not under `paper`.
        protocol: `strict` does not depend on the order of the file's points nor on a label; `paper` makes the published
            choices.
        normalise: override the protocol's normalisation of token errors; `none` in both.
        smooth: override the protocol's smoothing of token errors; `spatial` under `strict` [ours], else `none`.
        propagate: override the protocol's propagation from tokens to points: `nearest` [code] under `paper`.
        smooth_kernel: tokens under the smoothing Gaussian.
        smooth_sigma: its width in mean distances between neighbouring centres.
        row_window: rows of the file over which point scores are averaged; None takes 1 under `strict` and 511 [code]
            under `paper`.

    Raises:
        InputError: a setting is out of range, or open3d is missing where clouds are registered.
    """

    def __init__(
        self,
        *,
        num_groups: int = 1024,
        group_size: int = 128,
        width: int = 256,
        encoder_depth: int = 4,
        decoder_depth: int = 4,
        heads: int = 8,
        hidden: int = 1024,
        dropout: float = 0.1,
        mask_ratio: float = 0.4,
        test_masks: TestMasks | None = None,
        geometry_radius: float = 7.0,
        jitter_scale: float = 20.0,
        jitter_probability: float = 1.0,
        register: bool = True,
        complete: bool = False,
        complete_gap: float = COMPLETE_GAP,
        resolution: float | None = None,
        hypotheses: int = RegistrationSettings.hypotheses,
        frozen_cache_gb: float = 2.0,
        voxel_size: float | None = None,
        pad: bool = False,
        backbone_size: Size | None = None,
        backbone_weights: str = "small",
        backbone_blocks: Sequence[int] = (4,),
        standardise: bool | None = None,
        protocol: Protocol = "strict",
        normalise: Normalise | None = None,
        smooth: Smooth | None = None,
        propagate: Propagate | None = None,
        smooth_kernel: int = 11,
        smooth_sigma: float | None = None,
        row_window: int | None = None,
    ) -> None:
        super().__init__()
        check_range(1, inf, num_groups=num_groups, group_size=group_size, width=width, hidden=hidden)
        check_range(1, inf, encoder_depth=encoder_depth, decoder_depth=decoder_depth)
        check_range(1e-6, inf, geometry_radius=geometry_radius, voxel_size=voxel_size)
        check_range(0, 1, dropout=dropout, jitter_probability=jitter_probability)
        check_range(0, 1 - 1 / num_groups, mask_ratio=mask_ratio)
        strict = protocol == "strict"
        if complete and not strict:
            raise InputError("complete: under protocol paper clouds are scored as they come; drop it, or take strict")
        if test_masks is not None:
            check_choice(get_args(TestMasks), test_masks=test_masks)
        smooth = smooth or ("spatial" if strict else "none")
        self.scoring = TokenScoring.preset(
            protocol, normalise or "none", smooth, propagate, smooth_kernel, smooth_sigma
        )
        check_range(1, inf, row_window=row_window)
        self.row_window = row_window or (1 if strict else 511)
        average_along_rows(torch.zeros(1), self.row_window)  # refuses an even one
        self.protocol = protocol
        self.mask_ratio = mask_ratio
        self.heads = heads
        self.test_masks: TestMasks = test_masks or ("both" if strict else "drawn")
        self.geometry_radius = geometry_radius
        self.backbone_blocks = tuple(backbone_blocks)
        self.standardise = strict if standardise is None else standardise
        self.told_category = register and not strict
        self.in_template_frame = strict

        self.placement = make_placement(register, complete, protocol, hypotheses, resolution, complete_gap)
        self.patches = PatchSampler(num_groups, group_size, voxel_size, canonical=strict, pad=pad)
        self.backbone = frozen_point_mae(backbone_size, backbone_weights)
        token_width = self.backbone.width * len(self.backbone_blocks)
        self.standardiser = TokenStandardiser(token_width)
        self.frozen_views = FrozenCache[FrozenView](frozen_cache_gb, self._frozen_parts)
        self.jitter = FeatureJitter(jitter_scale, jitter_probability)
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.encoder = LocalEncoder(token_width, width, encoder_depth, heads, hidden, dropout)
        self.decoder = GlobalQueryDecoder(token_width, width, decoder_depth, heads, hidden, dropout)
        for part in (self.position, self.encoder, self.decoder):
            part.apply(_xavier)

    # -- training ----------------------------------------------------------------------------------------------

    def fixed_settings(self) -> dict[str, Any]:
        """What the tokens are that the weights have learned from."""
        patches = {"group_size": self.patches.group_size, "voxel_size": self.patches.voxel_size}
        tokens = {"backbone_blocks": self.backbone_blocks, "standardise": self.standardise}
        masks = {"mask_ratio": self.mask_ratio, "geometry_radius": self.geometry_radius, "heads": self.heads}
        frame = {} if self.placement is None else {"protocol": self.protocol}  # which decides whose frame clouds are in
        return super().fixed_settings() | patches | tokens | masks | frame

    def scoring_settings(self) -> dict[str, Any]:
        """And the number of patches, the order that they depend on, the masks, and rows that are averaged."""
        ours = {name: getattr(self, name) for name in ("protocol", "test_masks", "row_window")}
        return super().scoring_settings() | ours | {"num_groups": self.patches.num_groups}

    def loss(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        """`loss` = `reconstruction`, the mean square difference of tokens; zero while templates are looked for.

        `batch.category` is required where clouds are registered.
        """
        if not self.learns:
            return self.look(batch)
        views = [self._view_of(*cloud) for cloud in batch.named_clouds()]
        return self.loss_of(FrozenView(*map(torch.cat, zip(*views, strict=True))))

    def _view_of(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> FrozenView:
        make = partial(self._frozen, cloud, name, category)
        cut = (self.patches.num_groups, self.patches.group_size, self.patches.voxel_size)
        return self.frozen_views(cloud, make, (category, self.backbone_blocks, self.geometry_radius, cut))

    def _frozen(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> FrozenView:
        return self.view(self._patches(self.place_known(cloud, name, category)))

    def loss_of(self, view: FrozenView) -> dict[str, Tensor]:
        """The losses of clouds whose frozen view is at hand, each under one of the two masks by chance [code]."""
        if self.standardise and self.training:
            self.standardiser.observe(view.tokens)
        view = self.standardised(view)
        coin = torch.rand(len(view.tokens), device=view.tokens.device) > 0.5
        loss = (self.reconstruct(view, coin).float() - view.tokens).square().mean()
        return {"loss": loss, "reconstruction": loss}

    # -- scores ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Scores of each cloud by itself, from the distance of its frozen tokens to their reconstruction.

        Under `strict`, `batch.category` is not looked at.
        """
        told: dict[str, int] = {}
        if self.told_category and batch.category is not None:
            told = dict(zip(batch.sample_id, batch.category.tolist(), strict=True))
        return score_one_by_one(batch, self.protocol, lambda cloud, name: self._score(cloud, name, told.get(name)))

    def _score(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> Scored:
        if category is None:
            placed = self.place_predicted(PointCloudBatch.single(cloud, name))
        else:
            placed = self.place_known(cloud, name, category)
        groups = self._patches(placed)
        view = self.standardised(self.view(groups))
        errors = [
            (self.reconstruct(view, coin).float() - view.tokens).norm(dim=-1) for coin in self._test_coins(name, view)
        ]
        scored = self.scoring(torch.stack(errors).mean(0), groups, placed.batch)
        points = average_along_rows(scored.point_scores, self.row_window)
        return Scored(points, points.max(), None if placed.logits is None else placed.logits[0])

    def _patches(self, placed: PlacedClouds) -> PatchGroups:
        return self.patches(placed.seen, placed.frames if self.in_template_frame else None)

    def _test_coins(self, name: str, view: FrozenView) -> list[Bool[Tensor, " B"] | None]:
        coins = {"none": [None], "both": [False, True], "drawn": [bool(crc32(name.encode()) & 1)]}[self.test_masks]
        return [None if coin is None else torch.tensor([coin], device=view.tokens.device) for coin in coins]

    # -- both --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def view(self, groups: PatchGroups) -> FrozenView:
        """Frozen tokens and how much the surface varies at their centres."""
        tokens = self.backbone(groups.points, groups.centres, self.backbone_blocks)
        with stage("geometry"):
            variation = guide(groups.centres, self.geometry_radius)
        return FrozenView(torch.cat(tokens, dim=-1).float(), groups.centres, variation)

    def standardised(self, view: FrozenView) -> FrozenView:
        """The view as `reconstruct` expects it."""
        return view._replace(tokens=self.standardiser(view.tokens)) if self.standardise else view

    @stage("encoder and decoder")
    def reconstruct(self, view: FrozenView, hide_rough: Bool[Tensor, " B"] | None) -> Float[Tensor, "B G D"]:
        """The trainable part: tokens rebuilt with the rough or the smooth patches hidden, or with none (None)."""
        visible = None if hide_rough is None else visible_patches(view.variation, self.mask_ratio, hide_rough)
        position = self.position(view.centres)
        encoded = self.encoder(self.jitter(view.tokens), position, visible)
        return self.decoder(encoded, position, visible)


def _xavier(module: nn.Module) -> None:
    """Glorot's uniform weights [code], zero biases [ours]."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
