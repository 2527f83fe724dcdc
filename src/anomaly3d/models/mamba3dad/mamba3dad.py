"""Mamba3dAD: Multi-Scale Token Fusion with Mamba Adapters for Efficient 3D Industrial Defect Detection.

patches -> frozen Point-MAE tokens of L layers -> GSAS: sorted slots -> adapter -> LayerNorm
-> (training: noise on a few slots) -> discriminator: a logit per slot -> patches -> points
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Literal, NamedTuple, get_args

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from anomaly3d.errors import InputError, check_choice, check_ends, check_range
from anomaly3d.models.backbones.point_mae import Size
from anomaly3d.models.backbones.weights import frozen_point_mae
from anomaly3d.models.components.cache import FrozenCache
from anomaly3d.models.components.offsets import make_offsets
from anomaly3d.models.components.patches import FramedClouds, PatchSampler
from anomaly3d.models.components.placement import COMPLETE_GAP, make_placement
from anomaly3d.models.components.registration import RegistrationSettings
from anomaly3d.models.components.scoring import Protocol, smooth_in_space
from anomaly3d.models.components.standardise import TokenStandardiser
from anomaly3d.models.mamba3dad.adapters import AdapterKind, make_adapter
from anomaly3d.models.mamba3dad.augment import Augmentation
from anomaly3d.models.mamba3dad.discriminator import Discriminator
from anomaly3d.models.mamba3dad.fixed_order import Fixed, FixedOrder
from anomaly3d.models.mamba3dad.generator import AnomalyGenerator
from anomaly3d.models.mamba3dad.gsas import GSAS, Affinity, Assignment, Ordering, SortedTokens
from anomaly3d.models.mamba3dad.ordering import column_entropy, locality
from anomaly3d.models.mamba3dad.point_defects import PointDefects, moved_share, slot_labels
from anomaly3d.models.mamba3dad.reprojection import in_order_of_file, patch_scores, point_scores
from anomaly3d.models.mamba3dad.token_noise import TokenNoise
from anomaly3d.models.mamba3dad.voxel_median import ball_median
from anomaly3d.models.placing import PlacingDetector
from anomaly3d.ops.grouping import interpolate
from anomaly3d.ops.sinkhorn import Method
from anomaly3d.ops.stages import stage
from anomaly3d.types import AnomalyPrediction, PatchGroups, PointCloudBatch

Corruption = Literal["features", "tokens", "points", "both"]

_LEAST_POSITIVE = 0.01
"""Share of positive labels from which their weight is taken, at least: a step may have none [ours]."""


class TrainingView(NamedTuple):
    """An altered training cloud as the trainable part sees it."""

    tokens: Float[Tensor, "B M C"]  # of all blocks, one after the other: C = L * D
    centres: Float[Tensor, "B M 3"]
    defective: Float[Tensor, "B M"]  # share of each patch's points


class Mamba3dAD(PlacingDetector):
    """The Mamba3dAD detector.

    Lengths are in units of the cloud's radius, but `voxel_size` is in the units of the files.

    Args:
        backbone_size: Point-MAE architecture; None takes that of the weights. The published checkpoints are `base`
            [inferred]; `paper_width` is what the paper writes, and no checkpoint has it: `anomaly3d pretrain --config
            configs/experiment/point_mae_paper_width.yaml` makes one.
        backbone_weights: `small`, pre-trained on procedural shapes, which come with the package; path of a published
            checkpoint or of a file that `anomaly3d pretrain` wrote; or `random`. [ours]
        train_backbone: train the backbone too, for the paper's ablation: fine-tuned or, with `random` weights, from
            scratch. Its tokens are then computed at every step, and noise on them is refused. [paper: false]
        blocks: the transformer blocks whose tokens are used; None takes six spread evenly up to the last, or all where
            there are fewer: 2, 4, ..., 12 of 12. [inferred]
        num_groups: patches per cloud (M). [paper]
        group_size: points per patch; a smaller cloud gives all its points to each. 256 saves memory. [paper]
        voxel_size: edge of the voxel filter: 0.001 for Anomaly-ShapeNet, 0.5 (mm) for Real3D-AD, None for no filter.
            [paper]
        protocol: `strict`: points are put in canonical order first, so that nothing depends on the file's [ours];
            `paper` keeps the file's order, and nothing more. Other choices have a key each, whose default is the
            paper's where the grade says so; ours in its place can be undone: `gamma_range` [0, 20], `head_norm` false,
            `query_waves` null, `argmax_tau` null, `sinkhorn_method` log, `median_voxels` 3.
        yaw: augmentation: rotate by any angle about `yaw_axis`. [paper]
        yaw_axis: the axis that points up in the files. [inferred]
        jitter: augmentation: noise on each coordinate. [paper]
        jitter_clip: in standard deviations. [paper]
        scale: augmentation: relative change of size. [paper]
        dropout_points: augmentation: largest share of points left out. [paper]
        translation: augmentation: largest shift along each axis. [paper]
        views: altered copies of each training cloud, numbered: a step draws one of them, and its frozen tokens are
            computed once per run and kept. None draws anew at every step, and computes anew. [ours; paper: None]
        register: bring clouds into the pose and the frame of their category's template, for test clouds in any pose
            (`components/placement.py`); needs open3d. The category is predicted: that of the template which fits best.
            [ours]
        complete: join to a test cloud what its template has where the cloud shows nothing, for scans from one side;
            missing parts are then no defects. Takes `register`. [ours]
        complete_gap: how far from the cloud that begins, in units of `resolution`. [ours]
        resolution: edge of the voxel filter of registered clouds, in units of the template's radius. [ours]
        hypotheses: triples of correspondences that RANSAC draws for a pose. [ours]
        offset_share: share of a point's score that is the logarithm of its distance from the training clouds, in units
            of what is normal there (`components/offsets.py`), beside the logit. Takes `register`; 0 is the paper's
            Mamba3dAD, and any share suits weights that were trained with one above 0. [ours]
        offset_edge: edge of the voxel filter before distances are taken, in units of the template's radius. [ours]
        offset_neighbours: points over which distances are averaged, and the expected ones. [ours]
        frozen_cache_gb: memory for what is constant, the tokens of these copies and as much again for the clouds
            before they are altered; with 0 they are computed at every step, with the same losses. [ours]
        standardise: tokens in units of their variation over the training clouds: what all tokens share would otherwise
            make every descriptor alike, the columns of the plan blunt. None: unless corruption is `features` or the
            backbone is trained, whose tokens have no units that last. [ours]
        slots: S. [paper]
        descriptor_width: d_a. [paper]
        graph_neighbours: neighbours of a centre in the descriptor graph, itself included. [inferred]
        tau: Sinkhorn temperature. [paper]
        sinkhorn_iterations: K_sink. [paper]
        query_scale: standard deviation of the initial slot queries. [ours]
        query_waves: they start along a curve of so many cosines, without which the learned order is hardly better than
            a random one; None: independent of each other (`benchmarks/results/sorting.md`). [ours]
        affinity: of tokens and slots: `dot` [paper], or `cosine`, whose plans keep their row sums, so that the order
            stays local however long the sorter learns, but are blunt: made for `sort`. [ours]
        order: `gsas` [paper], or one that is not learned: `off`, `random` or `coordinate` (`fixed_order.FixedOrder`).
        assignment: of tokens to slots: `sinkhorn` [paper], `softmax`, or `hungarian`, with no more slots than tokens.
        block_tokens: most tokens that are sorted together; more are sorted in spatial blocks. [paper; number ours]
        ordering: `soft`, slots are mixtures of tokens [paper], or `sort`, tokens pass unmixed, in the order of their
            expected slots, so that no defective one is thinned out; the sorter then learns from its two losses alone.
            [ours]
        deployment: `argmax` or `sort` [paper], or `soft`: the ordering when scoring; None: as in training. [ours]
        argmax_tau: temperature of the near-binary plan from which `argmax` takes its tokens; None: tau. [ours]
        argmax_iterations: Sinkhorn iterations of that plan, at least. [ours]
        sinkhorn_method: `log` for large matrices [paper], or `auto`, where numbers would overflow. [ours]
        adapter: `lti`, a time-invariant state-space scan over the slots [paper: its equations], or what the paper's
            ablation puts in its place, with as many parameters: `selective`, Mamba's input-dependent scan; `attention`;
            `mlp`; or `identity`, nothing. [inferred]
        bidirectional: scan from both ends, with the same weights, and average; `lti` and `selective`. [inferred]
        state: width of the adapter's state; other kinds than `lti` take their widths from it. [paper] With the shipped
            backbone, smaller than the paper's, 256 makes the adapter 6 % of its parameters; recipes take less.
        transition: form of the adapter's matrix A; this and the next three are settings of `lti`. [inferred]
        state_norm: where the state is normalised. [inferred]
        state_scale: initial s of A = s * orthogonal. [paper]
        max_state_norm: limit of A's spectral norm. [paper]
        gate_bias: initial bias of the adapter's gate; at 0 half of what a slot hands on comes out of a
            scan in an order not learned yet, at -3 a twentieth. [ours; paper: not given]
        corruption: what the discriminator learns to tell from normal: noise on `features` [paper], on the
            frozen `tokens` (`token_noise.TokenNoise`), defects in the `points` of the cloud, or `both` features and
            points [ours].
            `configs/benchmark/mamba3dad_ablations.yaml` compares them.
        token_noise: least and greatest strength of the noise on tokens. [ours]
        label_mode: of noise on features: a mask per `slot` with exact labels [paper, equations], or per `patch`, with
            the labels and the noise that its tokens pass on [paper, implementation section]. With a blunt plan the
            latter are about p everywhere.
        noise_probability: share of slots, or of patches, corrupted in training (p). [paper]
        noise_sigma: standard deviation of the corruption before gamma. [paper]
        gamma: initial factor of the corruption, before the clamp. [paper]
        gamma_range: least and greatest factor; from 0 up, the paper's initial noise is too small to be learned from.
            [inferred]
        defect_count: most defects in a cloud, where `corruption` puts them into points; this and the next four are
            settings of `point_defects.PointDefects`. [ours]
        defect_radius: least and greatest radius of one. [ours]
        defect_height: least and greatest displacement, in radii of the defect. [ours]
        defect_elongation: greatest ratio of its axes. [ours]
        defect_holes: share of holes among them. [ours]
        heads: attention heads of the discriminator. [paper]
        dropout: in the discriminator. [paper]
        position_width: hidden channels of the MLP that embeds a slot's coordinate there. [inferred]
        head_norm: normalise what the discriminator's head sees, so that it cannot go by the length that noise adds.
            [ours; false: the paper's head]
        entropy_weight: of L_ent. [paper]
        locality_weight: of L_loc. [paper]
        locality_sigma: sigma_p. [paper]
        smooth_sigma: width of a Gaussian over the scores of neighbouring patches, in mean distances of the centres; an
            object's score is then its largest patch score [ours]. None: neither, and the largest slot logit [paper].
            Registered clouds, which `complete` may have added to, have the largest of their points' scores. [ours]
        smooth_kernel: patches under that Gaussian. [ours: as many as SeDiR]
        median_voxels: radius, in voxels, of the median filter on point scores (3 in the paper); None for none. [paper]
            Where clouds are registered and `voxel_size` is None a voxel is one of `resolution`.

    Raises:
        InputError: a setting is out of range or does not fit another.
    """

    views_seed: Tensor

    def __init__(
        self,
        backbone_size: Size | None = None,
        backbone_weights: str = "small",
        train_backbone: bool = False,
        blocks: Sequence[int] | None = None,
        num_groups: int = 256,
        group_size: int = 512,
        voxel_size: float | None = 0.001,
        protocol: Protocol = "strict",
        yaw: bool = True,
        yaw_axis: Literal["x", "y", "z"] = "z",
        jitter: float = 0.005,
        jitter_clip: float = 2.0,
        scale: float = 0.05,
        dropout_points: float = 0.05,
        translation: float = 0.002,
        views: int | None = None,
        register: bool = False,
        complete: bool = False,
        complete_gap: float = COMPLETE_GAP,
        resolution: float = 0.025,
        hypotheses: int = RegistrationSettings.hypotheses,
        offset_share: float = 0.0,
        offset_edge: float = 0.01,
        offset_neighbours: int = 16,
        frozen_cache_gb: float = 2.0,
        standardise: bool | None = None,
        slots: int = 1024,
        descriptor_width: int = 128,
        graph_neighbours: int = 8,
        tau: float = 0.2,
        sinkhorn_iterations: int = 8,
        query_scale: float = 1.0,
        query_waves: int | None = 4,
        affinity: Affinity = "dot",
        order: Literal["gsas", "off", "random", "coordinate"] = "gsas",
        assignment: Assignment = "sinkhorn",
        block_tokens: int | None = None,
        ordering: Literal["soft", "sort"] = "soft",
        deployment: Ordering | None = None,
        argmax_tau: float | None = 0.005,
        argmax_iterations: int = 50,
        sinkhorn_method: Method = "auto",
        adapter: AdapterKind = "lti",
        bidirectional: bool = False,
        state: int = 256,
        transition: Literal["rotation", "dense"] = "rotation",
        state_norm: Literal["readout", "recurrent"] = "readout",
        state_scale: float = 0.9,
        max_state_norm: float = 0.95,
        gate_bias: float = 0.0,
        corruption: Corruption = "features",
        token_noise: tuple[float, float] = (0.1, 1.0),
        label_mode: Literal["slot", "patch"] = "slot",
        noise_probability: float = 0.05,
        noise_sigma: float = 0.05,
        gamma: float = 0.05,
        gamma_range: tuple[float, float] = (10.0, 20.0),
        defect_count: int = 12,
        defect_radius: tuple[float, float] = (0.08, 0.3),
        defect_height: tuple[float, float] = (0.15, 0.6),
        defect_elongation: float = 4.0,
        defect_holes: float = 0.2,
        heads: int = 8,
        dropout: float = 0.1,
        position_width: int = 128,
        head_norm: bool = True,
        entropy_weight: float = 0.01,
        locality_weight: float = 0.1,
        locality_sigma: float = 0.05,
        smooth_sigma: float | None = None,
        smooth_kernel: int = 11,
        median_voxels: float | None = None,
    ) -> None:
        super().__init__()
        if median_voxels is not None and voxel_size is None and not register:
            raise InputError(
                "median_voxels counts voxels, but voxel_size is null; set voxel_size or drop median_voxels"
            )
        check_range(1, inf, num_groups=num_groups, group_size=group_size, slots=slots, state=state, views=views)
        check_range(1, inf, descriptor_width=descriptor_width, graph_neighbours=graph_neighbours)
        check_range(1, inf, position_width=position_width)
        check_range(1, inf, sinkhorn_iterations=sinkhorn_iterations, block_tokens=block_tokens, query_waves=query_waves)
        check_range(1e-6, inf, tau=tau, argmax_tau=argmax_tau, locality_sigma=locality_sigma)
        check_range(1e-6, inf, voxel_size=voxel_size, smooth_sigma=smooth_sigma)
        check_range(1e-6, 1 - 1e-6, noise_probability=noise_probability)
        check_range(1e-6, inf, noise_sigma=noise_sigma, gamma=gamma)
        check_ends(0, gamma_range=gamma_range)
        check_range(0, 1, dropout=dropout, dropout_points=dropout_points)
        check_range(1, inf, argmax_iterations=argmax_iterations, smooth_kernel=smooth_kernel)
        check_choice(get_args(Protocol), protocol=protocol)
        check_choice(get_args(Corruption), corruption=corruption)
        check_choice(("slot", "patch"), label_mode=label_mode)
        check_choice(("gsas", *get_args(Fixed)), order=order)
        check_choice(get_args(Assignment), assignment=assignment)
        check_choice(get_args(Affinity), affinity=affinity)
        check_choice(("soft", "sort"), ordering=ordering)
        check_choice(get_args(Ordering), deployment=deployment or ordering)
        check_choice(get_args(Method), sinkhorn_method=sinkhorn_method)
        check_choice(("rotation", "dense"), transition=transition)
        check_choice(("readout", "recurrent"), state_norm=state_norm)
        self.protocol = protocol
        self.sampler = PatchSampler(num_groups, group_size, voxel_size, protocol == "strict", pad=True)
        self.augment = Augmentation(
            yaw, yaw_axis, jitter, jitter_clip, scale, dropout_points, translation, min_points=num_groups
        )
        if protocol == "paper" and register:
            raise InputError(
                "protocol paper registers no clouds; set register, complete and offset_share to false or 0"
            )
        offsets = make_offsets(offset_share, offset_edge, offset_neighbours)
        self.offset_share = offset_share
        self.placement = make_placement(register, complete, protocol, hypotheses, resolution, complete_gap, offsets)
        if train_backbone and (views is not None or corruption == "tokens"):
            raise InputError(
                "train_backbone: its tokens change at every step; set views to null, and corruption to others"
            )
        if train_backbone and standardise:
            raise InputError("train_backbone: units of tokens that change at every step mean nothing; drop standardise")
        self.backbone = frozen_point_mae(backbone_size, backbone_weights)
        if train_backbone:
            self.backbone = self.backbone.thawed(max(blocks or [self.backbone.depth]))
        width, depth = self.backbone.width, self.backbone.depth
        self.blocks = spread_blocks(depth) if blocks is None else tuple(blocks)
        check_range(1, num_groups * len(self.blocks) if assignment == "hungarian" else inf, slots=slots)
        varied = corruption != "features" and not train_backbone
        self.standardise = varied if standardise is None else standardise
        self.standardiser = TokenStandardiser(width * len(self.blocks))
        self.gsas: GSAS | FixedOrder
        if order == "gsas":
            self.gsas = GSAS(
                width,
                slots,
                descriptor_width,
                graph_neighbours,
                tau,
                sinkhorn_iterations,
                query_scale,
                query_waves,
                assignment,
                block_tokens,
                affinity,
                argmax_tau,
                argmax_iterations,
                sinkhorn_method,
            )
        else:
            self.gsas = FixedOrder(order)
        self.ordering: Ordering = ordering
        self.deployment: Ordering = deployment or ordering
        self.adapter = make_adapter(
            adapter, width, state, transition, state_norm, state_scale, max_state_norm, gate_bias, bidirectional
        )
        self.norm = nn.LayerNorm(width)
        self.corruption: Corruption = corruption
        self.label_mode = label_mode
        self.token_noise = TokenNoise(noise_probability, token_noise)
        self.point_defects = PointDefects(
            defect_count, defect_radius, defect_height, defect_elongation, defect_holes, num_groups
        )
        self.generator = AnomalyGenerator(noise_probability, noise_sigma, gamma, gamma_range)
        # Distributed training refuses a trained parameter that no loss reaches.
        self.generator.requires_grad_(corruption in ("features", "both"))
        self.discriminator = Discriminator(width, heads, dropout, position_width, head_norm)
        self.positive_weight = (1 - noise_probability) / noise_probability
        self.entropy_weight = entropy_weight
        self.locality_weight = locality_weight
        self.locality_sigma = locality_sigma
        self.smooth_sigma = smooth_sigma
        self.smooth_kernel = smooth_kernel
        self.argmax_tau = argmax_tau
        self.argmax_iterations = argmax_iterations
        self.median_voxels = median_voxels
        self.resolution = resolution
        self._fixed = {
            "blocks": self.blocks,
            "standardise": self.standardise,
            "group_size": group_size,
            "voxel_size": voxel_size,
            "order": order,
            "ordering": ordering,
            "assignment": assignment,
            "affinity": affinity,
            "tau": tau,
            "graph_neighbours": graph_neighbours,
            "sinkhorn_iterations": sinkhorn_iterations,
            "block_tokens": block_tokens,
            "state_norm": state_norm,
            "max_state_norm": max_state_norm,
            "bidirectional": bidirectional,
            "heads": heads,
        }
        self.frames = FrozenCache[tuple[Tensor, Tensor, Tensor]](frozen_cache_gb, self._placed_by)
        self.frozen_views = FrozenCache[TrainingView](frozen_cache_gb, self._frozen_parts)
        self.views = views
        # Saved with the checkpoint: a resumed run sees the same copies.
        self.register_buffer("views_seed", torch.randint(2**31, ()))

    def fixed_settings(self) -> dict[str, Any]:
        """What the tokens are, how they are ordered and read: the weights have learned from that."""
        return super().fixed_settings() | self._fixed

    def scoring_settings(self) -> dict[str, Any]:
        """And the number of patches, their order, and how they are smoothed."""
        ordered = ("protocol", "deployment", "argmax_tau", "argmax_iterations")
        smoothed = ("smooth_sigma", "smooth_kernel", "median_voxels")
        ours = {name: getattr(self, name) for name in (*ordered, *smoothed)}
        return super().scoring_settings() | ours | {"num_groups": self.sampler.num_groups}

    def loss(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        """BCE on corrupted slots plus the two order losses; `gamma` is the noise's factor, for the log.

        Zero alone while templates are looked for; where clouds are registered, `batch.category` is required.
        """
        if not self.learns:
            return self.look(batch)
        views = [self._view(*cloud) for cloud in batch.named_clouds()]
        tokens, centres, defective = map(torch.cat, zip(*views, strict=True))
        tokens = self.standardised(tokens)
        if self.corruption == "tokens":
            tokens, defective = self.token_noise(tokens)
        ordered = self.sort(tokens, centres)
        features = self.features(ordered)
        labels, positive_weight = torch.zeros_like(features[..., 0], dtype=torch.float32), self.positive_weight
        if self.corruption in ("features", "both"):
            shares = None
            if self.label_mode == "patch":
                shares = reduce(ordered.assignment, "b (l m) s -> b m s", "sum", m=centres.shape[1])
            features, labels = self.generator(features, shares)
        if self.corruption != "features":
            labels = torch.maximum(labels, slot_labels(defective, ordered.assignment))
            # The paper's (1 - p) / p, but how much of the clouds is defective is known only now [ours].
            positive = labels.mean().clamp(min=_LEAST_POSITIVE)
            positive_weight = (1 - positive) / positive
        logits = self.discriminator(features, ordered.coordinates).float()
        bce = binary_cross_entropy_with_logits(logits, labels, pos_weight=torch.as_tensor(positive_weight).to(logits))
        entropy = column_entropy(ordered.plan)
        local = locality(ordered.plan, centres, self.locality_sigma)
        return {
            "loss": bce + self.entropy_weight * entropy + self.locality_weight * local,
            "bce": bce,
            "entropy": entropy,
            "locality": local,
            "gamma": self.generator.gamma.detach(),
        }

    @torch.no_grad()
    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Logits carried back to every point of the file, and the largest of them for the object."""
        batch, seen, frames, category_logits = self.place_predicted(batch)
        groups = self.sampler(seen, frames)
        ordered = self.sort(self.standardised(self.tokens(groups)), groups.centres)
        features = self.features(ordered)
        with stage("discriminator"):
            logits = self.discriminator(features, ordered.coordinates).float()
        with stage("reprojection"):
            of_patches = patch_scores(logits, ordered.assignment, groups.centres.shape[1])
            of_objects = logits.amax(dim=1)
            if self.smooth_sigma is not None:
                of_patches = smooth_in_space(of_patches, groups.centres, self.smooth_kernel, self.smooth_sigma)
                of_objects = of_patches.amax(dim=1)
            points = [self._to_file(of_patches[b], groups, b, xyz) for b, xyz in enumerate(batch.clouds())]
        if self.placement is not None:  # not of what the template has added
            of_objects = torch.stack([scores.max() for scores in points])
        prediction = AnomalyPrediction(torch.cat(points), of_objects, category_logits)
        return self.with_offsets(prediction, batch, category_logits, logarithm=True)

    def _view(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> TrainingView:
        if self.views is None:
            return self._altered(cloud, name, category)
        number = int(torch.randint(self.views, ()))
        return self.frozen_views(
            cloud,
            partial(self._numbered, cloud, name, category, number),
            (
                name,
                category,
                number,
                int(self.views_seed),
                self.blocks,
                self.sampler.num_groups,
                self.sampler.group_size,
            ),
        )

    def _numbered(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None, number: int) -> TrainingView:
        with torch.random.fork_rng([cloud.device] if cloud.is_cuda else []):
            torch.manual_seed(zlib.crc32(f"{self.views_seed.item()} {name} {number}".encode()))
            return self._altered(cloud, name, category)

    def _frame(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> tuple[Tensor, Tensor, Tensor]:
        placed = self.place_known(cloud, name, category)
        framed = self.sampler.frame(placed.seen, placed.frames)
        return framed.clouds[0], framed.centroid, framed.radius

    def _altered(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> TrainingView:
        points, centroid, radius = self.frames(cloud, partial(self._frame, cloud, name, category), category)
        framed = FramedClouds((points,), centroid, radius, (name,))
        augmented, defective = self.augment(framed.clouds[0]), None
        if self.corruption in ("points", "both"):
            augmented, defective = self.point_defects(augmented)
        groups = self.sampler.group(replace(framed, clouds=(augmented,)))
        shares = torch.zeros_like(groups.centres[..., 0])
        if defective is not None:
            shares = moved_share(defective, groups.index[0])[None]
        return TrainingView(self.tokens(groups), groups.centres, shares)

    def tokens(self, groups: PatchGroups) -> Float[Tensor, "B M C"]:
        """Tokens of the patches from all `blocks`, side by side."""
        return torch.cat(self.backbone(groups.points, groups.centres, self.blocks), dim=-1)

    def standardised(self, tokens: Float[Tensor, "B M C"]) -> Float[Tensor, "B M C"]:
        """The tokens as `sort` expects them; in training mode their variation counts from now on."""
        if not self.standardise:
            return tokens
        if self.training:
            self.standardiser.observe(tokens)
        return self.standardiser(tokens)

    @stage("GSAS")
    def sort(self, tokens: Float[Tensor, "B M C"], centres: Float[Tensor, "B M 3"]) -> SortedTokens:
        """Slots in the order of training, or in that of deployment."""
        ordering = self.ordering if self.training else self.deployment
        return self.gsas(rearrange(tokens, "b m (l d) -> b l m d", l=len(self.blocks)), centres, ordering)

    @stage("adapter")
    def features(self, ordered: SortedTokens) -> Float[Tensor, "B S D"]:
        """What the discriminator sees of the slots, after the adapter."""
        return self.norm(self.adapter(ordered.features))

    def _to_file(
        self, scores: Float[Tensor, " M"], groups: PatchGroups, b: int, xyz: Float[Tensor, "N 3"]
    ) -> Float[Tensor, " N"]:
        cloud = groups.cloud[b]
        points = point_scores(scores, groups.index[b], groups.centres[b], cloud)
        if self.median_voxels is not None:
            voxel = self.sampler.voxel_size
            edge = self.resolution if voxel is None else voxel / groups.radius[b].item()
            points = ball_median(cloud, points, self.median_voxels * edge)
        if self.sampler.voxel_size is None and self.placement is None:
            return in_order_of_file(points, self.sampler.order(xyz), xyz)
        return interpolate(points, cloud, groups.in_frame(xyz, b), method="nearest")


def spread_blocks(depth: int, most: int = 6) -> tuple[int, ...]:
    """At most six blocks (1-based) spread evenly over the depth, the last one included."""
    count = min(depth, most)
    return tuple(depth * (i + 1) // count for i in range(count))
