"""Defects in a training cloud itself, for the discriminator to see what geometry that is wrong looks like [ours]."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anomaly3d.errors import check_ends, check_range
from anomaly3d.ops.precision import no_autocast


class DefectiveCloud(NamedTuple):
    """A cloud and which of its points a defect has moved, or has left at its rim."""

    xyz: Float[Tensor, "N 3"]
    defective: Bool[Tensor, " N"]


class PointDefects(nn.Module):
    """Bulges, dents and holes at random places of a cloud in the model's frame.

    A spot is the points nearer than its radius to a random point, measured in a random ellipsoid, so that it may be
    long like a crack. A bulge or dent moves them along the spot's normal (the direction in which they vary least) with
    a smooth profile; a hole takes away those nearer than half the radius, and the rest of the spot counts as defective.
    Lengths are in units of the cloud's radius. Draws come from torch's global generator.

    Args:
        count: spots of a cloud are drawn from 0 to this number. With few, nearly all that a training step sees is
            normal, and little is learned from it.
        radius: least and greatest radius of a spot.
        height: least and greatest displacement, in radii of the spot.
        elongation: greatest ratio of a spot's axes.
        holes: share of the spots that are holes.
        min_points: no hole leaves fewer, so that every patch finds a centre.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        count: int = 12,
        radius: tuple[float, float] = (0.08, 0.3),
        height: tuple[float, float] = (0.15, 0.6),
        elongation: float = 4.0,
        holes: float = 0.2,
        min_points: int = 1,
    ) -> None:
        super().__init__()
        check_range(0, inf, defect_count=count)
        check_range(1, inf, defect_elongation=elongation)
        check_range(0, 1, defect_holes=holes)
        check_ends(1e-6, defect_radius=radius, defect_height=height)
        self.count = count
        self.radius = radius
        self.height = height
        self.elongation = elongation
        self.holes = holes
        self.min_points = min_points

    @torch.no_grad()
    def forward(self, xyz: Float[Tensor, "N 3"]) -> DefectiveCloud:
        """An altered copy of the cloud; a hole makes it smaller, but never by more than half."""
        xyz, least = xyz.clone(), max(len(xyz) // 2, self.min_points)
        defective = torch.zeros(len(xyz), dtype=torch.bool, device=xyz.device)
        for _ in range(int(torch.randint(self.count + 1, ()))):
            radius = _between(self.radius)
            distance = self._distance(xyz) / radius
            spot = (distance < 1).nonzero().flatten()
            if len(spot) < 8:
                continue
            if torch.rand(()) < self.holes:
                kept = distance >= 0.5
                if int(kept.sum()) >= least:
                    defective[spot] = True
                    xyz, defective = xyz[kept], defective[kept]
                continue
            profile = (1 - distance[spot] ** 2) ** 2
            side = 1.0 if torch.rand(()) < 0.5 else -1.0
            xyz[spot] += side * _between(self.height) * radius * profile[:, None] * _normal(xyz, spot)
            defective[spot[profile > 0.1]] = True
        return DefectiveCloud(xyz, defective)

    def _distance(self, xyz: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
        """From a random point, in a random ellipsoid whose shortest axis is 1."""
        centre = xyz[torch.randint(len(xyz), ()).to(xyz.device)]
        axes = torch.linalg.qr(torch.randn(3, 3)).Q.to(xyz)
        stretch = torch.tensor([self.elongation ** torch.rand(()).item(), 1.0, 1.0]).to(xyz)
        return ((xyz - centre) @ axes / stretch).norm(dim=1)


def moved_share(defective: Bool[Tensor, " N"], index: Int[Tensor, "M K"]) -> Float[Tensor, " M"]:
    """The defective share of each patch's points."""
    return defective[index].float().mean(dim=1)


def slot_labels(shares: Float[Tensor, "B M"], plan: Float[Tensor, "B T S"]) -> Float[Tensor, "B S"]:
    """Soft labels sum_t P_ts m_t, with m_t = 1 for a token half of whose patch, or more, is defective [ours]."""
    tokens = repeat((2 * shares).clamp(max=1), "b m -> b (l m)", l=plan.shape[1] // shares.shape[1])
    with no_autocast(plan):
        return einsum(plan.detach().float(), tokens, "b t s, b t -> b s").clamp(0, 1)


def _normal(xyz: Float[Tensor, "N 3"], spot: Int[Tensor, " n"]) -> Float[Tensor, " 3"]:
    points = xyz[spot].double()
    centred = points - points.mean(dim=0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, 0].to(xyz)


def _between(ends: tuple[float, float]) -> float:
    low, high = ends
    return low + (high - low) * torch.rand(()).item()
