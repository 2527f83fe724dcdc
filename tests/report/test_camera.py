import numpy as np
import pytest

from anomaly3d.report.camera import choose_camera, in_front, looking_from

UP = np.array([0.0, 1.0, 0.0])


def sphere(count: int = 3000) -> np.ndarray:
    directions = np.random.default_rng(0).standard_normal((count, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


@pytest.mark.parametrize("direction", [[1, 0, 0], [0, 1, 0], [0, -3, 0], [1, 2, -3]])
def test_axes_are_a_right_handed_frame_that_looks_along_the_direction(direction):
    direction = np.array(direction, dtype=float)
    axes = looking_from(direction, UP).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    np.testing.assert_allclose(axes[2], direction / np.linalg.norm(direction))


def test_up_is_up_in_the_picture():
    flat, _ = looking_from(np.array([1.0, 0.5, 2.0]), UP).project(np.array([[0, 0, 0], [0, 1.0, 0]]))
    assert flat[1, 0] == pytest.approx(flat[0, 0])
    assert flat[1, 1] > flat[0, 1]


def test_near_side_of_a_sphere_is_in_front():
    points = sphere()
    camera = looking_from(np.array([0.3, 0.2, 1.0]), UP)
    towards = points @ camera.axes[2]
    front = in_front(camera, points, 0.2)
    assert front[towards > 0.8].mean() > 0.99
    assert not front[towards < -0.6].any()


@pytest.mark.parametrize("direction", [[1, 0, 0], [-1, 0, 0], [0, 0, -1], [0, -1, 0], [-1, -1, 1]])
def test_the_defect_faces_the_viewer(direction):
    points = sphere()
    towards = np.array(direction) / np.linalg.norm(direction)
    camera = choose_camera(points, points, 0.06, UP, points @ towards > 0.95)
    assert camera.axes[2] @ towards > 0.8


def test_a_defect_inside_a_cup_is_seen_through_the_opening():
    rng = np.random.default_rng(1)
    angle, height = rng.uniform(0, 2 * np.pi, 6000), rng.uniform(0, 1.5, 6000)
    wall = np.stack([np.cos(angle), height, np.sin(angle)], axis=1)
    wall_normals = wall * [1, 0, 1]
    radius, angle = np.sqrt(rng.uniform(0, 1, 1500)), rng.uniform(0, 2 * np.pi, 1500)
    floor = np.stack([radius * np.cos(angle), 0 * angle + 0.3, radius * np.sin(angle)], axis=1)
    base = floor - [0, 0.3, 0]  # hides the floor from below
    xyz = np.concatenate([wall, floor, base])
    normals = np.concatenate([wall_normals, np.tile(UP, (3000, 1))])
    defect = np.arange(len(xyz)) // 1500 == 4
    assert choose_camera(xyz, normals, 0.05, UP, defect).axes[2] @ UP > 0.7


def test_a_flat_normal_cloud_is_not_seen_edge_on():
    plate = np.random.default_rng(2).uniform(-1, 1, (2000, 3)) * [1, 1, 0.01]
    camera = choose_camera(plate, np.tile([0.0, 0.0, 1.0], (2000, 1)), 0.05, UP)
    assert abs(camera.axes[2, 2]) > 0.6
