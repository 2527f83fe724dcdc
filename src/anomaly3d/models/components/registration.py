"""Rigid registration of a cloud to a template: RANSAC over FPFH correspondences, a search over rotations, ICP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from anomaly3d.models.components.fpfh import fpfh, one_thread, open3d
from anomaly3d.models.components.icp import Surface, icp, residuals
from anomaly3d.models.components.memory import nearest
from anomaly3d.models.components.pose_store import stored
from anomaly3d.models.components.ransac import Poses, moved, ransac_poses
from anomaly3d.ops.sphere import radius_about_mean
from anomaly3d.ops.tree import kd_tree, search
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
        rotations: from which ICP starts besides, all over the sphere.
        refined: the best poses of RANSAC and of the rotations each, which ICP refines.
        accept: residual beyond that of the template's sampling, of the cloud's radius, below which a cloud lies well as
            it stands, and nothing else is tried.
        seed: of the triples and the rotations.
    """

    coarse: float = 0.04
    fine: float = 0.025
    hypotheses: int = 100_000
    verified: int = 200
    rotations: int = 2000
    refined: int = 10
    accept: float = 0.008
    seed: int = 0


class Registration(NamedTuple):
    """Where a cloud lies on a template.

    `residual` is the root mean square distance of the cloud's points to the template, where no point counts as farther
    away than a tenth of the cloud's radius.
    """

    pose: Pose  # maps the cloud onto the template
    residual: float

    def apply(self, xyz: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """The points in the template's frame."""
        return apply_pose(torch.from_numpy(self.pose), xyz)


def apply_pose(pose: Float[Tensor, "4 4"], xyz: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """The points, moved in double precision."""
    pose = pose.to(xyz.device)
    return (xyz.double() @ pose[:3, :3].T + pose[:3, 3]).to(xyz.dtype)


class Template:
    """A cloud that others are registered to; the same bits on every call, kept on disk where `pose_store` is told to.

    Raises:
        InputError: (by every method) open3d is missing.
    """

    def __init__(self, xyz: Float[Tensor, "N 3"], settings: RegistrationSettings | None = None) -> None:
        self.xyz = xyz
        self.settings = settings or RegistrationSettings()
        self.centre = xyz.double().mean(0)
        self.radius = float((xyz - self.centre).norm(dim=1).max())
        self.thinned: dict[tuple[str, float], Float[Tensor, "n 3"]] = {}
        """Its points by protocol and resolution, kept by those that thin it out for every cloud (`completion.py`)."""

    @cached_property
    def tree(self) -> KDTree:
        """Of all points."""
        return kd_tree(self.xyz.cpu().numpy())

    def as_it_stands(self, xyz: Float[Tensor, "N 3"]) -> Registration:
        """From the pose that the cloud has in its file, its mean on the template's."""
        pose = np.eye(4)
        pose[:3, 3] = (self.centre - xyz.double().mean(0)).cpu().numpy()
        return self._stored("as it stands", xyz, lambda: self._refine(xyz, pose[None]))

    def register(self, xyz: Float[Tensor, "N 3"]) -> Registration:
        """From any pose: as it stands, or else the best of that, RANSAC and the rotations."""
        start = self.as_it_stands(xyz)
        return start if self.accepts(start, xyz) else self.search(xyz, start)

    def search(self, xyz: Float[Tensor, "N 3"], start: Registration) -> Registration:
        """The best of a pose that is known and those of RANSAC and of the rotations.

        RANSAC needs features that tell one place from another. A scan of one side of a part has few of them and borders
        that the template lacks; there only the rotations find the pose [ours].
        """

        def best() -> Registration:
            return self._refine(xyz, np.concatenate([self._from_features(xyz), self._from_rotations(xyz)]))

        return min(start, self._stored("search", xyz, best), key=lambda found: found.residual)

    def accepts(self, found: Registration, xyz: Float[Tensor, "N 3"]) -> bool:
        """Whether the residual is no more than sampling and `accept` explain.

        On a surface of random points whose nearest neighbours are s apart on average, the root mean square distance to
        the nearest one is 2 s / sqrt(pi), perfectly registered; half as much again in the square is accepted, but never
        more than half of what a residual can be: to a small cloud, the points of a large template are far apart.
        """
        radius = radius_about_mean(xyz)
        sampling = min(6 / np.pi * self._spacing**2, (0.05 * radius) ** 2)
        return found.residual**2 < sampling + (self.settings.accept * radius) ** 2

    def _stored(self, search: str, xyz: Tensor, compute: Callable[[], Registration]) -> Registration:
        def numbers() -> Float64[np.ndarray, "17"]:
            found = compute()
            return np.append(found.pose.ravel(), found.residual)

        kept = stored((search, repr(self.settings), self._content, _content(xyz)), numbers)
        return Registration(kept[:16].reshape(4, 4), float(kept[16]))

    @cached_property
    def _content(self) -> bytes:
        return _content(self.xyz)

    @cached_property
    def _spacing(self) -> float:
        return float(search(self.tree, self.xyz.cpu().numpy(), 2)[0][:, 1].mean())

    def _from_features(self, xyz: Tensor) -> Poses:
        """RANSAC over nearest neighbours of FPFH."""
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
        order = np.argsort(residuals(few, self.tree, poses, 2 * reach), kind="stable")
        return poses[order[: self.settings.refined]]

    def _from_rotations(self, xyz: Tensor) -> Poses:
        """ICP with a wide reach from everywhere, fewer and fewer poses with a narrower one."""
        points = voxel_filter(xyz, 1.5 * self.settings.coarse * self.radius).double().cpu().numpy()
        few = points[:: max(1, len(points) // 60)]
        quaternions = np.random.default_rng(self.settings.seed).normal(size=(self.settings.rotations, 4))
        poses = np.tile(np.eye(4), (self.settings.rotations, 1, 1))
        poses[:, :3, :3] = Rotation.from_quat(quaternions).as_matrix()
        poses[:, :3, 3] = self.centre.cpu().numpy() - moved(points, poses).mean(1)
        rough, surface = self._surfaces
        for source, goal, reach, iterations, keep in (
            (few, rough, 0.3, 10, self.settings.rotations // 5),
            (few, surface, 0.3, 15, self.settings.rotations // 20),
            (points, surface, 0.15, 15, self.settings.refined),
        ):
            poses = icp(source, goal, poses, reach * self.radius, iterations)
            fit = residuals(source, goal.tree, poses, 0.1 * radius_about_mean(xyz))
            poses = poses[np.argsort(fit, kind="stable")[:keep]]
        return poses

    def _refine(self, xyz: Tensor, poses: Poses) -> Registration:
        """ICP, point to plane: each pose on coarse voxels, the best one on fine voxels."""
        coarse, fine = (self._cloud(xyz, voxel) for voxel in (self.settings.coarse, self.settings.fine))
        # Of the cloud's own radius: residuals on templates of different sizes compare.
        reach = 0.1 * radius_about_mean(xyz)
        settled = [self._icp(coarse, pose, self.settings.coarse) for pose in poses]
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
        distance = search(self.tree, moved(np.asarray(source.points), pose[None])[0], reach=reach)[0]
        residual = float(np.sqrt(np.square(np.minimum(distance, reach)).mean()))
        return Registration(pose, residual)

    @cached_property
    def _coarse(self) -> tuple[Tensor, Tensor]:
        points = voxel_filter(self.xyz, self.settings.coarse * self.radius)
        return points, self._features(points)

    @cached_property
    def _plane(self) -> Any:
        return self._with_normals(self.settings.fine)

    @cached_property
    def _surfaces(self) -> tuple[Surface, Surface]:
        clouds = (self._with_normals(scale * self.settings.coarse) for scale in (1.5, 1.0))
        rough, surface = ((np.asarray(cloud.points), np.asarray(cloud.normals)) for cloud in clouds)
        return Surface.of(*rough), Surface.of(*surface)

    def _with_normals(self, voxel: float) -> Any:
        cloud = self._cloud(self.xyz, voxel)
        with one_thread():
            cloud.estimate_normals(open3d("Registration").geometry.KDTreeSearchParamKNN(20))
        return cloud

    def _features(self, points: Tensor) -> Tensor:
        return fpfh(points, 5 * self.settings.coarse * self.radius)

    def _cloud(self, xyz: Tensor, voxel: float) -> Any:
        o3d = open3d("Registration")
        points = voxel_filter(xyz, voxel * self.radius).double().cpu().numpy()
        return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))


def _content(xyz: Tensor) -> bytes:
    return f"{xyz.device.type} {xyz.dtype}".encode() + xyz.cpu().contiguous().numpy().tobytes()
