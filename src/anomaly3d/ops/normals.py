"""Local principal component analysis: normals, and how far a neighbourhood is from flat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.ops.grouping import gather_points
from anomaly3d.ops.knn import knn
from anomaly3d.ops.precision import as_coordinates, no_autocast

_CHUNK_POINTS = 1 << 16  # neighbourhoods held at a time by estimate_normals


@torch.no_grad()
def local_pca(
    neighbours: Float[Tensor, "*batch k 3"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Eigenvalues, ascending and not negative, of each neighbourhood's covariance, and the unit normal of the first.

    The covariance divides by k, so the eigenvalues are in squared units. Decomposed in float64: closed forms for 3 x 3
    matrices give NaN on flat, collinear and coincident points, where this gives zeros and some orthonormal frame. The
    sign of a normal carries no meaning (see `orient`). No gradient.

    Raises:
        ValueError: no points, NaN, or an integer type.
    """
    points = as_coordinates(neighbours, "neighbours")
    with no_autocast(points):
        centred = points.double()
        centred = centred - centred.mean(-2, keepdim=True)
        eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / points.shape[-2])
    return eigenvalues.clamp_min(0).to(points.dtype), vectors[..., 0].to(points.dtype)


def surface_variation(eigenvalues: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """Smallest eigenvalue over the sum of the three (ascending), in [0, 1/3]; 0 where all points coincide.

    Pauly, Gross and Kobbelt, Efficient simplification of point-sampled surfaces, 2002: 0 on a plane, 1/3 where
    the points have no direction.
    """
    total = eigenvalues.sum(-1)
    return torch.where(total > 0, eigenvalues[..., 0] / total, 0.0)


def orient(normals: Float[Tensor, "*batch 3"], outward: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The normals, turned round where they point against `outward`."""
    return torch.where((normals * outward).sum(-1, keepdim=True) < 0, -normals, normals)


def estimate_normals(xyz: Float[Tensor, "N 3"], k: int) -> Float[Tensor, "N 3"]:
    """Unit normals from each point's k nearest points (itself among them), oriented away from the cloud's centroid.

    Away from the centroid is consistent on star-shaped bodies only.

    Raises:
        ValueError: k out of 1..N, an empty cloud, NaN.
    """
    xyz = as_coordinates(xyz)
    index = knn(xyz[None], xyz[None], k)[1][0]
    normals = torch.cat([local_pca(gather_points(xyz[None], part[None])[0])[1] for part in index.split(_CHUNK_POINTS)])
    return orient(normals, xyz - xyz.mean(0))
