"""Rigid registration of a cloud to a template: FPFH correspondences, RANSAC, ICP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.spatial import KDTree
from torch import Tensor

from anomaly3d.models.components.fpfh import fpfh, one_thread, open3d
from anomaly3d.models.components.memory import nearest
from anomaly3d.models.components.ransac import Poses, ransac_poses
from anomaly3d.ops.voxel import voxel_filter

Pose = Float64[np.ndarray, "4 4"]


@dataclass(frozen=True)
class RegistrationSettings:
    """Lengths are shares of a radius, so that no unit matters [ours].

    Attributes:
        coarse: voxel of the features and of RANSAC, of the template's radius.
        fine: voxel of the last ICP, of the template's radius.
        hypotheses: triples that RANSAC draws.
        verified: poses with the most inliers, whose distances to the template are measured.
        refined: the best of these, which ICP refines.
        accept: residual beyond that of the template's sampling, of the cloud's radius, below which a cloud lies well as
            it stands, and nothing else is tried.
        seed: of the triples.
    """

    coarse: float = 0.04
    fine: float = 0.025
    hypotheses: int = 100_000
    verified: int = 200
    refined: int = 5
    accept: float = 0.008
    seed: int = 0


class Registration(NamedTuple):
    """Where a cloud lies on a template.

    `fitness` is the share of the cloud's points that have a template point within a tenth of the cloud's radius, and
    `inlier_rmse` their root mean square distance. `residual` weighs both: the root mean square distance where no point
    counts as farther away than that.
    """

    pose: Pose  # maps the cloud onto the template
    fitness: float
    inlier_rmse: float
    residual: float

    def apply(self, xyz: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The points in the template's frame."""
        pose = torch.from_numpy(self.pose).to(xyz.device)
        return (xyz.double() @ pose[:3, :3].T + pose[:3, 3]).to(xyz.dtype)


class Template:
    """A cloud that others are registered to; the same bits on every call.

    Raises:
        InputError: (by every method) open3d is missing.
    """

    def __init__(self, xyz: Float[Tensor, "N 3"], settings: RegistrationSettings | None = None) -> None:
        self.xyz = xyz
        self.settings = settings or RegistrationSettings()
        self.centre = xyz.double().mean(0)
        self.radius = float((xyz - self.centre).norm(dim=1).max())

    @cached_property
    def tree(self) -> KDTree:
        """Of all points."""
        return KDTree(self.xyz.cpu().numpy(), leafsize=32, balanced_tree=False, compact_nodes=False)

    def as_it_stands(self, xyz: Float[Tensor, "N 3"]) -> Registration:
        """From the pose that the cloud has in its file, its mean on the template's."""
        pose = np.eye(4)
        pose[:3, 3] = (self.centre - xyz.double().mean(0)).cpu().numpy()
        return self._refine(xyz, [pose])

    def register(self, xyz: Float[Tensor, "N 3"]) -> Registration:
        """From any pose: the better one of `as_it_stands` and RANSAC over nearest neighbours of FPFH."""
        start = self.as_it_stands(xyz)
        if self.accepts(start, xyz):
            return start
        return min(start, self._refine(xyz, self._candidates(xyz)), key=lambda found: found.residual)

    def accepts(self, found: Registration, xyz: Float[Tensor, "N 3"]) -> bool:
        """Whether the residual is no more than sampling and `accept` explain.

        On a surface of random points whose nearest neighbours are s apart on average, the root mean square distance to
        the nearest one is 2 s / sqrt(pi), perfectly registered; half as much again in the square is accepted.
        """
        sampling = 6 / np.pi * self._spacing**2
        return found.residual**2 < sampling + (self.settings.accept * _radius(xyz)) ** 2

    @cached_property
    def _spacing(self) -> float:
        return float(self.tree.query(self.xyz.cpu().numpy(), k=2)[0][:, 1].mean())

    def _candidates(self, xyz: Tensor) -> Poses:
        points = voxel_filter(xyz, self.settings.coarse * self.radius)
        goals, goal_features = self._coarse
        _, index = nearest(self._features(points), goal_features)
        source, target = points.double().cpu().numpy(), goals[index[:, 0]].double().cpu().numpy()
        reach = 1.5 * self.settings.coarse * self.radius
        poses = ransac_poses(
            source, target, reach, self.settings.hypotheses, self.settings.verified, self.settings.seed
        )
        if not len(poses):
            return poses
        few = source[:: max(1, len(source) // 300)]
        moved = few @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
        distance = np.minimum(self.tree.query(moved, distance_upper_bound=2 * reach)[0], 2 * reach)
        order = np.argsort(np.square(distance).mean(1), kind="stable")
        return poses[order[: self.settings.refined]]

    def _refine(self, xyz: Tensor, poses: Poses | list[Pose]) -> Registration:
        """ICP, point to plane: each pose on coarse voxels, the best one on fine voxels."""
        coarse, fine = (self._cloud(xyz, voxel) for voxel in (self.settings.coarse, self.settings.fine))
        reach = 0.1 * _radius(xyz)  # the cloud's own radius: residuals on templates of different sizes compare
        settled = [self._icp(coarse, pose, self.settings.coarse) for pose in poses]
        if not settled:
            return Registration(np.eye(4), 0.0, reach, reach)
        judged = [self._judge(coarse, pose, reach) for pose in settled]
        best = min(judged, key=lambda found: found.residual)
        return self._judge(fine, self._icp(fine, best.pose, self.settings.fine), reach)

    def _icp(self, source: Any, pose: Pose, voxel: float) -> Pose:
        reg = open3d("Registration").pipelines.registration
        with one_thread():
            found = reg.registration_icp(
                source,
                self._plane,
                2 * voxel * self.radius,
                pose,
                reg.TransformationEstimationPointToPlane(),
                reg.ICPConvergenceCriteria(max_iteration=40),
            )
        return np.array(found.transformation)

    def _judge(self, source: Any, pose: Pose, reach: float) -> Registration:
        moved = np.asarray(source.points) @ pose[:3, :3].T + pose[:3, 3]
        distance = self.tree.query(moved, distance_upper_bound=reach)[0]
        inlier = np.isfinite(distance)
        rmse = float(np.sqrt(np.square(distance[inlier]).mean())) if inlier.any() else reach
        residual = float(np.sqrt(np.square(np.minimum(distance, reach)).mean()))
        return Registration(pose, float(inlier.mean()), rmse, residual)

    @cached_property
    def _coarse(self) -> tuple[Tensor, Tensor]:
        points = voxel_filter(self.xyz, self.settings.coarse * self.radius)
        return points, self._features(points)

    @cached_property
    def _plane(self) -> Any:
        o3d = open3d("Registration")
        cloud = self._cloud(self.xyz, self.settings.fine)
        with one_thread():
            cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(20))
        return cloud

    def _features(self, points: Tensor) -> Tensor:
        return fpfh(points, 5 * self.settings.coarse * self.radius)

    def _cloud(self, xyz: Tensor, voxel: float) -> Any:
        o3d = open3d("Registration")
        points = voxel_filter(xyz, voxel * self.radius).double().cpu().numpy()
        return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))


def _radius(xyz: Tensor) -> float:
    return float((xyz - xyz.mean(0)).norm(dim=1).max())
