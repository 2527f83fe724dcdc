"""SeDiR, the detector: one model for all categories, told apart by a global token that it learns to contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import inf, isfinite
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import InputError, check_choice, check_range
from anomaly3d.models.backbones.point_mae import Size
from anomaly3d.models.backbones.weights import frozen_point_mae
from anomaly3d.models.components.cache import FrozenCache
from anomaly3d.models.components.expected import ExpectedErrors
from anomaly3d.models.components.geometry import GeometrySource, geometry_descriptor
from anomaly3d.models.components.jitter import FeatureJitter
from anomaly3d.models.components.offsets import make_offsets
from anomaly3d.models.components.patches import PatchSampler
from anomaly3d.models.components.placement import COMPLETE_GAP, make_placement
from anomaly3d.models.components.registration import RegistrationSettings
from anomaly3d.models.components.scoring import Normalise, Propagate, Protocol, Smooth, TokenScoring
from anomaly3d.models.components.sized_buffers import part_of
from anomaly3d.models.components.standardise import TokenStandardiser
from anomaly3d.models.placing import PlacingDetector
from anomaly3d.models.sedir.buffer import Eviction
from anomaly3d.models.sedir.c3l import CategoryContrast
from anomaly3d.models.sedir.cfgt import (
    CoarseToFineTokenizer,
    Encoded,
    GlobalFeature,
    GlobalToken,
    global_feature,
    position_embedding,
)
from anomaly3d.models.sedir.ggd import Decoder, GeometryGuidedDecoder
from anomaly3d.models.sedir.guidance import GeometryGuidance, Injection
from anomaly3d.ops.stages import stage
from anomaly3d.types import AnomalyPrediction, PatchGroups, PointCloudBatch


class FrozenView(NamedTuple):
    """All that the trainable part sees of clouds, the same at every step: it can be computed once and kept."""

    fine: Float[Tensor, "B G D"]
    base: Float[Tensor, "B G D"]
    coarse: Float[Tensor, "B G D"]
    centres: Float[Tensor, "B G 3"]
    geometry: Float[Tensor, "B G 2"]


class ScoredView(NamedTuple):
    """What is scored of clouds of unknown category."""

    batch: PointCloudBatch  # placed
    groups: PatchGroups
    view: FrozenView
    placed_as: Float[Tensor, "B C"] | None  # how well each category's template fits


class Reconstruction(NamedTuple):
    """What the trainable part makes of a view."""

    encoded: Encoded
    feature: Float[Tensor, "B F"] | None  # f_global; None where the model has no global token
    z: Float[Tensor, "B W"] | None
    tokens: Float[Tensor, "B G D"]


class SeDiR(PlacingDetector):
    """Reconstruct frozen Point-MAE tokens from their category's normality; what fails to be rebuilt is anomalous.

    Each of the three neighbourhoods goes through the whole backbone, transformer included [inferred], norms of the
    transformers come after the sums [inferred], and the reconstruction loss is a mean over tokens and channels
    [inferred]; queries are z plus the position, the first of them the decoder's first state [inferred, as in MC3D-AD],
    and z is as wide as the tokens [inferred]: these have no key. Grades of the defaults: [paper] written or drawn
    there, [second-hand] public readings agree, [inferred] from the code base it edits, arithmetic or convention,
    [ours].

    Args:
        num_groups: patches per cloud, g [paper].
        group_size: points of the base neighbourhood, k [paper].
        neighbourhood_ratio: r; the fine neighbourhood has k/r points, the coarse one k r [paper]. The shipped backbone
            scales all three by the radius of the largest [ours], so that with it r also decides the scale of the tokens
            that are rebuilt; with published weights, which take patches as they are, it does not.
        width: channels of the transformers and of the global token [inferred].
        encoder_depth: layers of the shared encoder [paper].
        decoder_depth: layers of the geometry-guided decoder [paper].
        heads: attention heads [paper].
        hidden: channels inside the feed-forward blocks [inferred].
        dropout: dropout rate of both transformers, attention weights excepted [inferred].
        global_token: the global feature that becomes z: `cfgt`, `act`, `mean` or `max` [paper: Table 7]
            (`cfgt.global_feature`), or `none` [inferred: Table 4 without CFGT]: the decoder is queried by position
            alone, as in MC3D-AD, and there is nothing to contrast.
        jitter_scale: strength of the noise on the tokens in training [paper].
        jitter_probability: chance of a cloud to get it, for each resolution by itself [paper].
        buffer_size: past global tokens to contrast with, L [paper].
        buffer_eviction: `fifo` [paper], or `balanced`: the buffer keeps every category represented [ours].
        temperature: of the contrastive loss [inferred].
        contrastive_weight: weight of the contrastive loss [second-hand]. With 0 a loss and what it alone needs is left
            out.
        cosine_weight: weight of the consistency of the resolutions [second-hand].
        class_weight: weight of the classification loss [second-hand]; with 0 no category is predicted.
        decoder: `ggd` [paper], or `plain`, whose feed-forward blocks see the second attention alone, as in MC3D-AD;
            with `geometry` none it is the model without its geometry-guided decoder (Table 4) [inferred].
        geometry: how the decoder's attention meets geometry: `bias` [paper], `masking` or `gating` [paper: Table 6;
            their equations ours], or `none` (`guidance.GeometryGuidance`).
        geometry_radius: neighbourhood of the geometry bias in mean nearest-neighbour distances of the centres
            [inferred]; lower it with few centres, where 7 would span the whole object.
        geometry_source: normals and curvatures from the `centres` [inferred] or from the whole `cloud` around them.
        geometry_beta: initial strength of the geometry bias, or of the gate, learnable [inferred].
        geometry_hidden: channels inside the MLP of the geometry bias, or of the gate [ours].
        geometry_masked: share of patches that `masking` hides [ours: as many as MC3D-AD masks].
        frozen_cache_gb: memory for the frozen tokens of training clouds, which are not augmented: the same in every
            epoch [ours]; 0 encodes them at every step, with the same losses.
        register: bring clouds into the pose and the frame of their category's template, for test clouds in any pose
            (`components/placement.py`); needs open3d. The category is predicted: that of the template which fits best
            [ours].
        complete: join to a test cloud what its template has where the cloud shows nothing, for scans from one side;
            missing parts are then no defects. Takes `register` [ours].
        complete_gap: how far from the cloud that begins, in units of `resolution` [ours].
        resolution: edge of the voxel filter of registered clouds, in units of the template's radius [ours].
        hypotheses: triples of correspondences that RANSAC draws for a pose [ours].
        relative: score a patch's error in units of what training clouds have at its place
            (`components/expected.py`), so that places which the model has not learned do not stand out on every cloud.
            Takes `register` [ours].
        relative_neighbours: patches of training clouds nearest to the place, whose mean error that is [ours].
        offset_share: share of a point's score that is its distance from the training clouds, in units of what is normal
            there (`components/offsets.py`): a token is taken about its patch's own centre, and does not see that the
            patch as a whole is displaced. Takes `relative`, whose unit is the same; 0 is the paper's SeDiR. Any share
            suits weights that were trained with one above 0 [ours].
        offset_edge: edge of the voxel filter before distances are taken, in units of the template's radius [ours].
        offset_neighbours: points over which distances are averaged, and the expected ones [ours].
        voxel_size: edge of the voxel filter in file units [paper: none].
        pad: accept clouds with fewer than k r points, repeating a patch's centre (exact: patches are max-pooled)
            [ours].
        backbone_size: architecture of the frozen Point-MAE [paper: base]; None takes that of the weights.
        backbone_weights: `small`, pre-trained on procedural shapes, which come with the package [ours]; path of a
            published checkpoint or of a file that `anomaly3d pretrain` wrote; or `random`.
        backbone_blocks: blocks whose normalised tokens are joined, counted from 1 [inferred].
        standardise: rebuild tokens in units of their variation over the training clouds [ours]; by default under
            `strict` and not under `paper`.
        protocol: `strict` [ours] does not depend on the order of the file's points; `paper` makes the paper's literal
            choices in sampling, standardising and scoring. Sizes, backbone and training stay the recipe's; `register`,
            `complete`, `relative` and `offset_share`, which no paper has, are refused.
        normalise: override the protocol's normalisation of token errors: `none` under `strict` [ours], `instance` under
            `paper` [paper].
        smooth: override the protocol's smoothing of token errors: `spatial` [ours], `token_index` [paper] or `none`.
        propagate: override the protocol's propagation from tokens to points: `inverse_distance` [ours], or `nearest`
            [paper].
        smooth_kernel: tokens under the smoothing Gaussian [inferred].
        smooth_sigma: its width; by default 2 tokens for `token_index` [inferred], and for `spatial` 1 mean distance
            between neighbouring centres [ours].

    Raises:
        InputError: a setting is out of range or does not fit another.
    """

    def __init__(
        self,
        *,
        num_groups: int = 1024,
        group_size: int = 256,
        neighbourhood_ratio: float = 2.0,
        width: int = 256,
        encoder_depth: int = 4,
        decoder_depth: int = 4,
        heads: int = 8,
        hidden: int = 1024,
        dropout: float = 0.1,
        global_token: GlobalFeature = "cfgt",
        jitter_scale: float = 20.0,
        jitter_probability: float = 1.0,
        buffer_size: int = 64,
        buffer_eviction: Eviction = "fifo",
        temperature: float = 0.1,
        contrastive_weight: float = 0.001,
        cosine_weight: float = 0.001,
        class_weight: float = 0.01,
        decoder: Decoder = "ggd",
        geometry: Injection = "bias",
        geometry_radius: float = 7.0,
        geometry_source: GeometrySource = "centres",
        geometry_beta: float = 1.0,
        geometry_hidden: int = 32,
        geometry_masked: float = 0.4,
        frozen_cache_gb: float = 2.0,
        register: bool = False,
        complete: bool = False,
        complete_gap: float = COMPLETE_GAP,
        resolution: float = 0.025,
        hypotheses: int = RegistrationSettings.hypotheses,
        relative: bool = False,
        relative_neighbours: int = 12,
        offset_share: float = 0.0,
        offset_edge: float = 0.01,
        offset_neighbours: int = 16,
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
    ) -> None:
        super().__init__()
        check_range(1, inf, num_groups=num_groups, width=width, hidden=hidden, geometry_hidden=geometry_hidden)
        check_range(1, inf, encoder_depth=encoder_depth, decoder_depth=decoder_depth)
        check_range(1e-6, inf, temperature=temperature, geometry_radius=geometry_radius, voxel_size=voxel_size)
        check_range(0, 1, dropout=dropout, jitter_probability=jitter_probability)
        check_range(0, 1 - 1e-6, geometry_masked=geometry_masked)
        check_range(0, 1e6, contrastive_weight=contrastive_weight, class_weight=class_weight)
        check_range(0, 1e6, cosine_weight=cosine_weight, jitter_scale=jitter_scale)
        check_range(-1e6, 1e6, geometry_beta=geometry_beta)
        check_range(0, 1e6, frozen_cache_gb=frozen_cache_gb)
        check_range(1, inf, relative_neighbours=relative_neighbours)
        check_choice(get_args(GlobalFeature), global_token=global_token)
        check_choice(get_args(GeometrySource), geometry_source=geometry_source)
        self.neighbourhoods = neighbourhoods(group_size, neighbourhood_ratio)
        if global_token == "none" and contrastive_weight + class_weight > 0:
            raise InputError("global_token none: nothing to contrast; set contrastive_weight and class_weight to 0")
        self.protocol = protocol
        self.global_token: GlobalFeature = global_token
        self.three_resolutions = global_token == "cfgt" or cosine_weight > 0
        self.geometry_radius = geometry_radius
        self.geometry_source = geometry_source
        self.backbone_blocks = tuple(backbone_blocks)
        self.scoring = TokenScoring.preset(protocol, normalise, smooth, propagate, smooth_kernel, smooth_sigma)

        self.patches = PatchSampler(
            num_groups, max(self.neighbourhoods), voxel_size, canonical=protocol == "strict", pad=pad
        )
        self.backbone = frozen_point_mae(backbone_size, backbone_weights)
        token_width = self.backbone.width * len(self.backbone_blocks)

        self.standardiser = TokenStandardiser(token_width)
        self.standardise = protocol == "strict" if standardise is None else standardise
        if protocol == "paper" and register:
            raise InputError(
                "protocol paper registers no clouds; set register, complete, relative and offset_share to false or 0"
            )
        if relative and not register:
            raise InputError("relative: errors are compared by place on a template; set register to true")
        offsets = make_offsets(offset_share, offset_edge, offset_neighbours)
        if offset_share and not (relative and self.scoring.normalise == "none"):
            raise InputError(
                "offset_share: both parts of a score need one unit; set register and relative to true, and normalise "
                "to none"
            )
        self.placement = make_placement(register, complete, protocol, hypotheses, resolution, complete_gap, offsets)
        self.offset_share = offset_share
        self.relative = relative
        # Where clouds are placed: a patch's place means the same in all of them.
        self.expected = None if self.placement is None else ExpectedErrors(relative_neighbours)
        self.frozen_views = FrozenCache[FrozenView](frozen_cache_gb, self._frozen_parts)
        self.jitter = FeatureJitter(jitter_scale, jitter_probability)
        self.position = position_embedding(width)
        context = global_token in ("cfgt", "act")
        self.tokenizer = CoarseToFineTokenizer(token_width, width, encoder_depth, heads, hidden, dropout, context)
        # z is as wide as the tokens: forced by the decoder's residual [inferred].
        feature_width = 4 * width if global_token == "cfgt" else width
        self.embed = None if global_token == "none" else GlobalToken(feature_width, width)
        self.contrast = CategoryContrast(
            feature_width,
            width,
            buffer_size,
            buffer_eviction,
            temperature,
            contrastive_weight,
            cosine_weight,
            class_weight,
        )
        self.guidance = GeometryGuidance(geometry, geometry_hidden, geometry_beta, geometry_masked)
        self.decoder = GeometryGuidedDecoder(token_width, width, decoder_depth, heads, hidden, dropout, decoder)
        self._wired = {"heads": heads, "global_token": global_token, "geometry": geometry, "decoder": decoder}
        if geometry == "masking":
            self._wired["geometry_masked"] = geometry_masked

    def configure(self, categories: Sequence[str]) -> None:
        """Name the training categories and build the class head for them."""
        super().configure(categories)
        self.contrast.configure(len(categories))

    def fixed_settings(self) -> dict[str, Any]:
        """What the tokens and the geometry are that the weights have learned from, and what they meet on the way."""
        patches = {"neighbourhoods": list(self.neighbourhoods), "voxel_size": self.patches.voxel_size}
        tokens = {"backbone_blocks": self.backbone_blocks, "standardise": self.standardise}
        tokens |= {"geometry_radius": self.geometry_radius, "geometry_source": self.geometry_source}
        return super().fixed_settings() | patches | tokens | self._wired

    def scoring_settings(self) -> dict[str, Any]:
        """And the number of patches, and what errors are relative to."""
        neighbours = self.expected.neighbours if self.relative and self.expected is not None else None
        patches = {
            "num_groups": self.patches.num_groups,
            "protocol": self.protocol,
        }  # of which one depends on the order
        return super().scoring_settings() | patches | {"relative_neighbours": neighbours}

    def finish_pass(self) -> bool:
        """Keep the templates after the first pass, and after each later one the errors that it had."""
        done = super().finish_pass()
        if self.expected is not None:
            self.expected.finish_pass(len(self.categories))
        return done

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """For the templates, and for the errors on them."""
        super().make_room(state)
        if self.expected is not None:
            self.expected.make_room(part_of(state, "expected."))

    def loss(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        """`loss` = `reconstruction` + `c3l`, and the terms of `c3l`; `batch.category` is required.

        Zero alone while templates are looked for. In training, pushes the global tokens into the contrastive buffer:
        one call per step, on every rank.
        """
        if batch.category is None:
            raise ValueError("SeDiR learns from categories, and this batch has none.")
        if not self.learns:
            return self.look(batch)
        views = [self._view_of(*cloud) for cloud in batch.named_clouds()]
        view = FrozenView(*map(torch.cat, zip(*views, strict=True)))
        terms, errors = self._learn(view, batch.category)
        if self.expected is not None:
            self.expected.observe(batch.sample_id, batch.category, view.centres, errors)
        return terms

    def _view_of(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> FrozenView:
        make = partial(self._frozen, cloud, name, category)
        settings = (self.neighbourhoods, self.backbone_blocks, self.geometry_radius, self.geometry_source)
        cut = (self.patches.num_groups, self.patches.voxel_size)
        return self.frozen_views(cloud, make, (category if self.placement else None, settings, cut))

    def _frozen(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> FrozenView:
        placed = self.place_known(cloud, name, category)
        return self.view(self.patches(placed.seen, placed.frames))

    def loss_of(self, view: FrozenView, category: Tensor) -> dict[str, Tensor]:
        """The losses of clouds whose frozen view is at hand."""
        return self._learn(view, category)[0]

    def _learn(self, view: FrozenView, category: Tensor) -> tuple[dict[str, Tensor], Float[Tensor, "B G"]]:
        if self.standardise and self.training:
            self.standardiser.observe(view.base)
        view = self.standardised(view)
        encoded, feature, z, tokens = self.reconstruct(view)
        terms = self.contrast.loss(encoded, feature, z, category)
        gap = tokens.float() - view.base
        terms["reconstruction"] = gap.square().mean()
        return {"loss": terms["reconstruction"] + terms["c3l"], **terms}, gap.detach().norm(dim=-1)

    @torch.no_grad()
    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Scores from the distance of each frozen token to its reconstruction, and the predicted category."""
        batch, groups, view, placed_as = self.scored_view(batch)
        _, feature, _, tokens = self.reconstruct(view)
        errors = (tokens.float() - view.base).norm(dim=-1)
        if self.relative and self.expected is not None and placed_as is not None:
            expected = self.expected(groups.centres, placed_as.argmax(dim=1))
            errors = torch.where(expected.isnan(), errors, errors / expected.clamp(min=1e-6))
        logits = None if feature is None or self.contrast.classifier is None else self.contrast.logits(feature)
        return self.with_offsets(self.scoring(errors, groups, batch, logits), batch, placed_as)

    @torch.no_grad()
    def scored_view(self, batch: PointCloudBatch) -> ScoredView:
        """Clouds as they are scored: placed, where clouds are, and standardised."""
        placed = self.place_predicted(batch)
        groups = self.patches(placed.seen, placed.frames)
        return ScoredView(placed.batch, groups, self.standardised(self.view(groups)), placed.logits)

    @torch.no_grad()
    def view(self, groups: PatchGroups) -> FrozenView:
        """Frozen tokens of the three nested neighbourhoods, and the geometry of the centres."""
        # Neighbours are sorted from near to far: a smaller neighbourhood is a prefix.
        views = self.backbone.nested(groups.points, groups.centres, self.neighbourhoods, self.backbone_blocks)
        fine, base, coarse = (torch.cat(tokens, dim=-1) for tokens in views)
        clouds = groups.cloud if self.geometry_source == "cloud" else None
        with stage("geometry"):
            geometry = geometry_descriptor(groups.centres, self.geometry_radius, clouds)
        return FrozenView(fine.float(), base.float(), coarse.float(), groups.centres, geometry)

    def standardised(self, view: FrozenView) -> FrozenView:
        """The view as `reconstruct` expects it; the same affine map for all resolutions, if any."""
        if not self.standardise:
            return view
        fine, base, coarse = (self.standardiser(tokens) for tokens in (view.fine, view.base, view.coarse))
        return view._replace(fine=fine, base=base, coarse=coarse)

    @stage("encoder and decoder")
    def reconstruct(self, view: FrozenView) -> Reconstruction:
        """The trainable part: encode up to three resolutions, sum them up in z, and decode the base tokens."""
        position = self.position(view.centres)
        base = self.jitter(view.base)
        sides = (self.jitter(view.fine), self.jitter(view.coarse)) if self.three_resolutions else None
        encoded = self.tokenizer(base, position, sides)
        feature, z = None, None
        if self.embed is not None:
            feature = global_feature(encoded, self.global_token)
            z = self.embed(feature)
        tokens = self.decoder(z, position, encoded.base, self.guidance(view.geometry))
        return Reconstruction(encoded, feature, z, tokens)


def neighbourhoods(k: int, ratio: float) -> tuple[int, int, int]:
    """Points of the fine, base and coarse neighbourhood: k / ratio, k and k * ratio, rounded (Tables S3 and S4).

    Raises:
        InputError: they are not three different sizes of at least one point.
    """
    if not (ratio > 1 and isfinite(ratio)):
        raise InputError(f"neighbourhood_ratio={ratio}: must be greater than 1, and finite")
    fine, coarse = round(k / ratio), round(k * ratio)
    if not 1 <= fine < k < coarse:
        raise InputError(f"group_size={k}: too few points for neighbourhoods of k/{ratio:g}, k and {ratio:g} k")
    return fine, k, coarse
