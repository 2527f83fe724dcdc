"""Fast point feature histograms (Rusu, Blodow and Beetz, ICRA 2009), through open3d."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from anomaly3d.ops.backend import require_package
from anomaly3d.ops.tree import kd_tree, search


def open3d(setting: str) -> ModuleType:
    """The optional package open3d; without it an InputError names the `setting` that needs it and the pip command."""
    return require_package("open3d", setting)


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenMP with one thread: sums add in one order, and open3d gives the same bits on every call."""
    with _threadpools().limit(limits=1, user_api="openmp"):
        yield


@cache
def _threadpools() -> Any:
    """To find the loaded libraries takes longer than a small cloud's features: once, behind the import of open3d."""
    from threadpoolctl import ThreadpoolController  # scikit-learn needs it, so it is there

    return ThreadpoolController()


def fpfh(
    xyz: Float[Tensor, "N 3"],
    radius: float | None,
    neighbours: int = 100,
    normal_radius: float | None = None,
    normal_neighbours: int = 30,
    orient: bool = True,
) -> Float[Tensor, "N 33"]:
    """FPFH of every point: three angles of 11 bins each.

    A scan from one side has the histograms of the whole only where walls are thicker than the neighbourhood reaches,
    and away from its borders: through a thinner wall the histogram of the whole also counts the points of the other
    face, which the scan does not show.

    Args:
        xyz: a cloud.
        radius: of a histogram's neighbourhood, in the unit of the cloud; None takes `neighbours` however far they are.
        neighbours: most points in it.
        normal_radius: of the neighbourhood of a normal, likewise.
        normal_neighbours: most points in it.
        orient: turn normals to the side on which the surface bulges, away from the mean of the `neighbours` nearest
            points [ours]: a rule that knows neither the pose nor what lies beyond them. Where a neighbourhood is flat
            noise decides, point by point, and histograms of flat places differ from one pose or draw of the noise to
            the next; more neighbours see more of the bulge. False leaves the sign that the decomposition happens to
            give, as published code does, which depends on the pose everywhere.

    Raises:
        InputError: open3d is missing.
    """
    o3d = open3d("FPFH")
    geometry = o3d.geometry
    cloud = geometry.PointCloud(o3d.utility.Vector3dVector(xyz.double().cpu().numpy()))

    def search(radius: float | None, most: int) -> Any:
        return geometry.KDTreeSearchParamKNN(most) if radius is None else geometry.KDTreeSearchParamHybrid(radius, most)

    with one_thread():
        cloud.estimate_normals(search(normal_radius, normal_neighbours))
        if orient:
            cloud.normals = o3d.utility.Vector3dVector(_bulging(cloud, neighbours))
        found = o3d.pipelines.registration.compute_fpfh_feature(cloud, search(radius, neighbours))
    return torch.from_numpy(np.array(found.data.T)).to(xyz)


def _bulging(cloud: Any, neighbours: int) -> Float64[np.ndarray, "N 3"]:
    points, normals = np.asarray(cloud.points), np.array(cloud.normals)
    _, near = search(kd_tree(points), points, min(neighbours, len(points)))
    bulge = points - points[near.reshape(len(points), -1)].mean(1)
    normals[(bulge * normals).sum(1) < 0] *= -1
    return normals
