"""Training-time augmentation of a cloud in the model's frame."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Augmentation(nn.Module):
    """Yaw, jitter, scale, point dropout and translation, drawn anew for every cloud and pass.

    It acts on the whole cloud before the patches are cut, so that every layer's tokens see the same draw. Lengths are
    in units of the cloud's radius. Draws come from torch's global generator.

    Args:
        yaw: rotate by an angle from [0, 2 pi). [paper]
        yaw_axis: the axis that points up in the data set's files. [inferred]
        jitter: standard deviation of the noise on each coordinate. [paper]
        jitter_clip: the noise is clipped at this many standard deviations. [paper]
        scale: factor from [1 - scale, 1 + scale]. [paper]
        dropout: largest share of points left out. [paper]
        translation: largest shift along each axis. [paper]
        min_points: dropout leaves at least this many points, so that every patch finds a centre. [ours]
    """

    def __init__(
        self,
        yaw: bool = True,
        yaw_axis: Literal["x", "y", "z"] = "z",
        jitter: float = 0.005,
        jitter_clip: float = 2.0,
        scale: float = 0.05,
        dropout: float = 0.05,
        translation: float = 0.002,
        min_points: int = 1,
    ) -> None:
        super().__init__()
        self.yaw = yaw
        self.yaw_axis = "xyz".index(yaw_axis)
        self.jitter = jitter
        self.jitter_clip = jitter_clip
        self.scale = scale
        self.dropout = dropout
        self.translation = translation
        self.min_points = min_points

    @torch.no_grad()
    def forward(self, cloud: Float[Tensor, "N 3"]) -> Float[Tensor, "M 3"]:
        """An altered copy of the cloud, M <= N points in the same order."""
        kept = self._keep(cloud)
        if self.yaw:
            kept = kept @ self._rotation(cloud).T
        noise = torch.randn_like(kept).clamp(-self.jitter_clip, self.jitter_clip)
        factor = 1 + self.scale * (2 * torch.rand((), device=cloud.device) - 1)
        shift = self.translation * (2 * torch.rand(3, device=cloud.device) - 1)
        return (kept + self.jitter * noise) * factor + shift

    def _keep(self, cloud: Tensor) -> Tensor:
        share = self.dropout * torch.rand((), device=cloud.device)
        count = max(int(len(cloud) * (1 - share)), min(self.min_points, len(cloud)))
        chosen = torch.randperm(len(cloud), device=cloud.device)[:count]
        return cloud[chosen.sort().values]

    def _rotation(self, cloud: Tensor) -> Tensor:
        angle = 2 * math.pi * torch.rand((), device=cloud.device)
        first, second = (self.yaw_axis + 1) % 3, (self.yaw_axis + 2) % 3
        rotation = torch.eye(3, device=cloud.device, dtype=cloud.dtype)
        rotation[first, first] = rotation[second, second] = angle.cos()
        rotation[second, first] = angle.sin()
        rotation[first, second] = -angle.sin()
        return rotation
