"""From an error per patch to a score per point and per cloud: three choices that every result records."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import InputError, check_choice, check_range
from anomaly3d.ops.grouping import gather_points, interpolate
from anomaly3d.ops.knn import knn
from anomaly3d.ops.precision import no_autocast
from anomaly3d.ops.stages import stage
from anomaly3d.types import AnomalyPrediction, PatchGroups, PointCloudBatch

Protocol = Literal["strict", "paper"]
Normalise = Literal["instance", "none"]
Smooth = Literal["token_index", "spatial", "none"]
Propagate = Literal["nearest", "inverse_distance"]

_PRESETS: dict[Protocol, tuple[Normalise, Smooth, Propagate]] = {
    "strict": ("none", "spatial", "inverse_distance"),
    "paper": ("instance", "token_index", "nearest"),
}


@dataclass(frozen=True)
class TokenScoring:
    """Normalise the token errors, smooth them, carry them to the points; the object's score is the maximum.

    Attributes:
        normalise: `instance` stretches each cloud's errors to [0, 1], which makes the largest error of every cloud
            equal and leaves the object score to measure the width of its peak.
        smooth: `token_index` is a Gaussian along the order of the tokens, which is no neighbourhood and depends on the
            order of the file's points; `spatial` a Gaussian over each centre's nearest centres.
        propagate: `nearest` centre, or `inverse_distance` weights of the three nearest.
        kernel: tokens under the Gaussian, odd for `token_index` [inferred].
        sigma: its width, in tokens [inferred] or in mean nearest-neighbour distances of the centres [ours]
            (`benchmarks/results/sedir.md`).
    """

    normalise: Normalise = "none"
    smooth: Smooth = "spatial"
    propagate: Propagate = "inverse_distance"
    kernel: int = 11
    sigma: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("normalise", Normalise), ("smooth", Smooth), ("propagate", Propagate)):
            check_choice(get_args(choices), **{name: getattr(self, name)})
        check_range(1, inf, smooth_kernel=self.kernel)
        check_range(1e-6, 1e6, smooth_sigma=self.sigma)
        if self.smooth == "token_index" and self.kernel % 2 == 0:
            raise InputError(f"smooth_kernel={self.kernel}: along the token_index give an odd number")

    @classmethod
    def preset(
        cls,
        protocol: Protocol = "strict",
        normalise: Normalise | None = None,
        smooth: Smooth | None = None,
        propagate: Propagate | None = None,
        kernel: int = 11,
        sigma: float | None = None,
    ) -> Self:
        """The choices of a protocol, each of which may be overridden.

        `paper` is what the paper writes (instance, token_index, nearest); `strict` does not depend on the order of the
        points and is comparable across clouds (none, spatial, inverse_distance).
        """
        check_choice(get_args(Protocol), protocol=protocol)
        preset = _PRESETS[protocol]
        smooth = smooth or preset[1]
        if sigma is None:
            sigma = 2.0 if smooth == "token_index" else 1.0
        return cls(normalise or preset[0], smooth, propagate or preset[2], kernel, sigma)

    @stage("reprojection")
    def __call__(
        self,
        errors: Float[Tensor, "B G"],
        groups: PatchGroups,
        batch: PointCloudBatch,
        category_logits: Float[Tensor, "B C"] | None = None,
    ) -> AnomalyPrediction:
        """Scores of every point of the original clouds from one error per patch."""
        with no_autocast(errors):
            tokens = self.token_map(errors.float(), groups.centres)
            points = [
                interpolate(tokens[b], groups.centres[b], groups.in_frame(xyz, b), self.propagate)
                for b, xyz in enumerate(batch.clouds())
            ]
        return AnomalyPrediction(
            point_scores=torch.cat(points),
            object_scores=torch.stack([score.max() for score in points]),
            category_logits=category_logits,
        )

    def token_map(self, errors: Float[Tensor, "B G"], centres: Float[Tensor, "B G 3"]) -> Float[Tensor, "B G"]:
        """The normalised and smoothed errors."""
        if self.normalise == "instance":
            errors = min_max(errors)
        if self.smooth == "token_index":
            return smooth_along_index(errors, self.kernel, self.sigma)
        if self.smooth == "spatial":
            return smooth_in_space(errors, centres, self.kernel, self.sigma)
        return errors


def min_max(errors: Float[Tensor, "B G"]) -> Float[Tensor, "B G"]:
    """Each row stretched to [0, 1]; a constant row becomes zero."""
    low, high = errors.aminmax(dim=1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (errors - low) / spread.clamp(min=torch.finfo(errors.dtype).tiny), 0.0)


def smooth_along_index(errors: Float[Tensor, "B G"], kernel: int, sigma: float) -> Float[Tensor, "B G"]:
    """Gaussian of `kernel` taps along the token index; the ends are repeated."""
    half = kernel // 2
    taps = torch.arange(-half, half + 1, device=errors.device, dtype=errors.dtype)
    weight = torch.exp(-0.5 * (taps / sigma) ** 2)
    padded = F.pad(errors[:, None], (half, half), mode="replicate")
    return F.conv1d(padded, (weight / weight.sum())[None, None])[:, 0]


def smooth_in_space(
    errors: Float[Tensor, "B G"], centres: Float[Tensor, "B G 3"], neighbours: int, sigma: float
) -> Float[Tensor, "B G"]:
    """Gaussian over the nearest centres (itself included); sigma in mean nearest-neighbour distances of the cloud."""
    if errors.shape[1] == 1:
        return errors
    distance, index = knn(centres, centres, min(neighbours, errors.shape[1]))
    spacing = distance[:, :, 1].mean(1) if index.shape[2] > 1 else torch.ones_like(errors[:, 0])
    width = (sigma * spacing).clamp(min=torch.finfo(distance.dtype).tiny)[:, None, None]
    weight = torch.exp(-0.5 * (distance / width) ** 2)
    near = gather_points(errors[..., None], index)[..., 0]
    return (weight * near).sum(-1) / weight.sum(-1)
