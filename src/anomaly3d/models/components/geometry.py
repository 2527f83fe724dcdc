"""Where a surface bends: how much normal and curvature vary around each patch centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from anomaly3d.ops.precision import no_autocast

GeometrySource = Literal["centres", "cloud"]

_FLAT = 1e-12  # total variance, in units of the cloud's radius squared, below which points are one and the same
_ISOTROPIC = 1e-6  # gap of the two smallest eigenvalues, over their sum, below which a normal is not defined
_SIDEWAYS = 1e-5  # normal's part towards the centroid, in units of the largest distance from it, that may be rounding
_CENTRES_AT_ONCE = 64


@torch.no_grad()
def geometric_variation(
    centres: Float[Tensor, "B G 3"],
    radius_factor: float = 7.0,
    clouds: Sequence[Float[Tensor, "N 3"]] | None = None,
) -> Float[Tensor, "B G 2"]:
    """How much normal and curvature vary around each centre (MC3D-AD; SeDiR, supplement B).

    Neighbours of a centre are the points within `radius_factor` times the mean distance between a centre and the
    nearest other one. Their covariance gives the normal (eigenvector of the smallest eigenvalue, turned away from the
    centroid) and the curvature l0 / (l0 + l1 + l2); the variations are the mean angle (radians) to the normals, and
    the mean absolute difference to the curvatures, of the neighbouring centres. A normal at a right angle to the
    direction of the centroid, as all are on a plate, has no outward side: the angles to it are of undirected lines.

    Args:
        centres: in the model's frame (unit radius).
        radius_factor: neighbourhood radius in mean nearest-neighbour distances.
        clouds: where given, covariances are taken over each cloud's own points instead of its centres.

    Returns:
        Finite for any input: centres whose neighbourhood has no normal (fewer than three points, collinear,
        coincident, isotropic) take no part in the angles.
    """
    with no_autocast(centres):
        variations = [
            _vary(centres[b].double(), radius_factor, None if clouds is None else clouds[b].double())
            for b in range(len(centres))
        ]
    return torch.stack(variations)


@torch.no_grad()
def geometry_descriptor(
    centres: Float[Tensor, "B G 3"],
    radius_factor: float = 7.0,
    clouds: Sequence[Float[Tensor, "N 3"]] | None = None,
) -> Float[Tensor, "B G 2"]:
    """`h` of SeDiR: the `geometric_variation` with 7 mean distances [inferred], z-scored over each cloud [inferred].

    A column that does not vary is zero.
    """
    h = geometric_variation(centres, radius_factor, clouds)
    # The small constant leaves rounding noise of a column that is constant in truth at zero.
    return ((h - h.mean(1, keepdim=True)) / (h.std(1, correction=0, keepdim=True) + 1e-6)).to(centres.dtype)


def _vary(
    centres: Float[Tensor, "G 3"], radius_factor: float, cloud: Float[Tensor, "N 3"] | None
) -> Float[Tensor, "G 2"]:
    distance = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(len(centres), dtype=torch.bool, device=centres.device)
    spacing = distance.masked_fill(itself, torch.inf).amin(1).nan_to_num(posinf=0.0).mean()
    radius = radius_factor * spacing
    normals, curvature, defined = _surface(centres, centres if cloud is None else cloud, radius)
    near = (distance <= radius) & ~itself
    from_centroid = centres - centres.mean(0)
    outward = (normals * from_centroid).sum(-1)
    normals = torch.where(outward[:, None] < 0, -normals, normals)
    sideways = outward.abs() <= _SIDEWAYS * from_centroid.norm(dim=1).amax()
    cosine = (normals @ normals.T).clamp(-1, 1)
    angle = torch.where(sideways | sideways[:, None], cosine.abs(), cosine).arccos()
    bend = (curvature[:, None] - curvature).abs()
    return torch.stack([_masked_mean(angle, near & defined & defined[:, None]), _masked_mean(bend, near)], dim=-1)


def _surface(
    centres: Float[Tensor, "G 3"], points: Float[Tensor, "N 3"], radius: Float[Tensor, ""]
) -> tuple[Float[Tensor, "G 3"], Float[Tensor, " G"], Bool[Tensor, " G"]]:
    """Normals, to either side, curvatures, and whether the normal is defined."""
    covariance = torch.cat([_covariance(part, points, radius) for part in centres.split(_CENTRES_AT_ONCE)])
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    eigenvalues = eigenvalues.clamp(min=0)
    total = eigenvalues.sum(-1)
    curvature = torch.where(total > _FLAT, eigenvalues[:, 0] / total.clamp(min=_FLAT), 0.0)
    defined = (total > _FLAT) & (eigenvalues[:, 1] - eigenvalues[:, 0] > _ISOTROPIC * total)
    return eigenvectors[:, :, 0], curvature, defined


def _covariance(
    centres: Float[Tensor, "M 3"], points: Float[Tensor, "N 3"], radius: Float[Tensor, ""]
) -> Float[Tensor, "M 3 3"]:
    """Covariance of the points within the radius of each centre, from their first two moments in float64."""
    near = torch.cdist(centres, points, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    weight = near.double() / near.sum(1, keepdim=True).clamp(min=1)
    second = weight @ rearrange(points[:, :, None] * points[:, None, :], "n i j -> n (i j)")
    mean = weight @ points
    return rearrange(second, "m (i j) -> m i j", i=3) - mean[:, :, None] * mean[:, None, :]


def _masked_mean(values: Float[Tensor, "G G"], mask: Bool[Tensor, "G G"]) -> Float[Tensor, " G"]:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
