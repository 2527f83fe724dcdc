from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from part_shapes import bracket
from scipy.spatial.transform import Rotation

from anomaly3d.models.components.icp import Surface, icp, residuals
from anomaly3d.models.components.ransac import moved
from anomaly3d.models.components.registration import RegistrationSettings, Template


def pose(rotation_vector: list[float], shift: list[float]) -> np.ndarray:
    found = np.eye(4)
    found[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    found[:3, 3] = shift
    return found


@pytest.fixture(scope="module")
def surface(open3d: ModuleType) -> Surface:
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(bracket(3000, 0).double().numpy()))
    cloud.estimate_normals(open3d.geometry.KDTreeSearchParamKNN(20))
    return Surface.of(np.asarray(cloud.points), np.asarray(cloud.normals))


STARTS = np.stack([pose([0.1, -0.05, 0.2], [0.1, 0.2, -0.1]), pose([0, 0.2, 0], [-0.2, 0, 0.1])])


def test_a_step_is_the_least_squares_step_of_a_loop(surface):
    source, reach = bracket(60, 1).double().numpy(), 0.4
    found = icp(source, surface, STARTS, reach, iterations=1)
    for start, stepped in zip(STARTS, found, strict=True):
        points = [start[:3, :3] @ p + start[:3, 3] for p in source]
        centre = np.mean(points, axis=0)
        rows, gaps = [], []
        for p in points:
            far = [np.linalg.norm(p - q) for q in surface.points]
            if min(far) < reach:
                q, n = surface.points[np.argmin(far)], surface.normals[np.argmin(far)]
                rows.append([*np.cross(p - centre, n), *n])
                gaps.append((p - q) @ n)
        assert 10 < len(rows) < len(source)
        step = np.linalg.lstsq(np.array(rows), -np.array(gaps), rcond=None)[0]
        turn = Rotation.from_rotvec(step[:3]).as_matrix()
        expected = np.stack([turn @ (p - centre) + centre + step[3:] for p in points])
        np.testing.assert_allclose(moved(source, stepped[None])[0], expected, atol=1e-4)


def test_it_settles_where_open3d_does(open3d, surface):
    reg, vector = open3d.pipelines.registration, open3d.utility.Vector3dVector
    goal = open3d.geometry.PointCloud(vector(surface.points))
    goal.normals = vector(surface.normals)
    source = bracket(800, 2).double().numpy()
    for start, found in zip(STARTS, icp(source, surface, STARTS, 1.0, iterations=30), strict=True):
        expected = reg.registration_icp(
            open3d.geometry.PointCloud(vector(source)),
            goal,
            1.0,
            start,
            reg.TransformationEstimationPointToPlane(),
            reg.ICPConvergenceCriteria(0, 0, 30),
        )
        np.testing.assert_allclose(found, expected.transformation, atol=1e-3)
    assert (residuals(source, surface.tree, found[None], 1.0) < 0.2).all()


def test_a_direction_that_nothing_fixes_is_left_alone():
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), [0.0]), -1).reshape(-1, 3)
    plane = Surface.of(grid, np.tile([0.0, 0, 1], (100, 1)))
    source = np.add(grid[::3], [0.1, 0.2, 0.3])
    found = icp(source, plane, np.eye(4)[None], 1.0, iterations=5)[0]
    np.testing.assert_allclose(found, pose([0, 0, 0], [0, 0, -0.3]), atol=1e-4)
    nothing = icp(source + 50, plane, np.eye(4)[None], 1.0, iterations=2)[0]
    np.testing.assert_array_equal(nothing, np.eye(4))


def test_residuals_are_root_mean_squares_of_what_is_near(surface):
    source = bracket(50, 3).double().numpy()
    found = residuals(source, surface.tree, STARTS, 0.3)
    for start, value in zip(STARTS, found, strict=True):
        near = [
            min(0.3, *(np.linalg.norm(start[:3, :3] @ p + start[:3, 3] - q) for q in surface.points)) for p in source
        ]
        assert value == pytest.approx(np.sqrt(np.mean([float(d) ** 2 for d in near])))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 5])
def test_a_noisy_side_in_any_pose_is_found_where_features_mislead(open3d, seed):
    generator = np.random.default_rng(seed)
    whole, view = bracket(6000, 3).double(), generator.normal(size=3)
    turn = Rotation.from_quat(generator.normal(size=4)).as_matrix()
    ahead = (whole - whole.mean(0)).numpy() @ view
    side = whole.numpy()[ahead > np.median(ahead)] @ turn.T
    side = torch.from_numpy(side + 0.2 * generator.normal(size=side.shape)).float()
    found, by_features = (
        Template(bracket(4000, 0), RegistrationSettings(rotations=rotations)).register(side) for rotations in (500, 0)
    )
    np.testing.assert_allclose(found.pose[:3, :3], turn.T, atol=0.05)
    assert by_features.residual > 1.1 * found.residual
