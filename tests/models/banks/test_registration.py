from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from part_shapes import bracket, plate
from scipy.spatial.transform import Rotation

from anomaly3d.errors import InputError
from anomaly3d.models.components.ransac import kabsch, ransac_poses
from anomaly3d.models.components.registration import Registration, RegistrationSettings, Template
from anomaly3d.models.components.templates import CategoryTemplates
from anomaly3d.ops import backend


def random_rotation(seed: int) -> np.ndarray:
    return Rotation.from_quat(np.random.default_rng(seed).normal(size=4)).as_matrix()


def turned(xyz: torch.Tensor, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    rotation = random_rotation(seed)
    shift = np.random.default_rng(seed).normal(size=3) * 5
    return (xyz.double() @ torch.from_numpy(rotation).T + torch.from_numpy(shift)).float(), rotation, shift


def test_kabsch_is_scipy_and_never_a_reflection():
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(2, 5, 4, 3))
    for pose, a, b in zip(kabsch(source, target), source, target, strict=True):
        expected = Rotation.align_vectors(b - b.mean(0), a - a.mean(0))[0]
        np.testing.assert_allclose(pose[:3, :3], expected.as_matrix(), atol=1e-6)
        np.testing.assert_allclose(pose[:3, :3] @ a.mean(0) + pose[:3, 3], b.mean(0), atol=1e-9)
    mirrored = kabsch(source[:1], source[:1] * [1, 1, -1])
    assert np.linalg.det(mirrored[0, :3, :3]) == pytest.approx(1)


def test_ransac_finds_the_pose_among_wrong_correspondences():
    generator = np.random.default_rng(1)
    source = generator.normal(size=(200, 3))
    rotation, shift = random_rotation(2), np.array([1.0, -2, 3])
    target = source @ rotation.T + shift
    target[:140] = generator.normal(size=(140, 3))
    poses = ransac_poses(source, target, 0.05, 5000, 3, seed=0)
    np.testing.assert_allclose(poses[0, :3, :3], rotation, atol=1e-6)
    np.testing.assert_array_equal(poses, ransac_poses(source, target, 0.05, 5000, 3, seed=0))
    assert ransac_poses(source[:1], target[:1], 0.05, 50, 3, seed=0).shape == (0, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_pose_is_recovered_and_the_same_twice(open3d, seed):
    template = Template(bracket(4000, 0))
    cloud, rotation, shift = turned(bracket(3000, 10 + seed), seed)
    found = template.register(cloud)
    np.testing.assert_allclose(found.pose[:3, :3], rotation.T, atol=0.03)
    np.testing.assert_allclose(found.pose[:3, 3], -rotation.T @ shift, atol=0.3)
    again = Template(bracket(4000, 0)).register(cloud)
    np.testing.assert_array_equal(found.pose, again.pose)
    # The residual by hand; ICP saw voxels, not points.
    assert 0 < found.residual < 0.15
    distance = torch.cdist(found.apply(cloud), bracket(4000, 0)).amin(1)
    assert distance.median() < 0.15
    assert distance.max() < 0.1 * (cloud - cloud.mean(0)).norm(dim=1).max()
    assert found.residual == pytest.approx(distance.square().mean().sqrt().item(), rel=0.2)


def test_a_half_is_recovered(open3d):
    whole = bracket(6000, 3)
    half, rotation, _ = turned(whole[whole[:, 1] < 1.0], 5)
    found = Template(bracket(4000, 0)).register(half)
    np.testing.assert_allclose(found.pose[:3, :3], rotation.T, atol=0.05)


def test_a_cloud_that_stands_well_is_left_in_its_pose(open3d, monkeypatch):
    template = Template(bracket(8000, 0), RegistrationSettings(accept=0.05))
    monkeypatch.setattr(template, "search", lambda xyz, start: pytest.fail("searched for a pose"))
    found = template.register(bracket(4000, 1) + torch.tensor([0.2, 0.1, 0.0]))
    np.testing.assert_allclose(found.pose[:3, :3], np.eye(3), atol=0.02)


@pytest.mark.slow
def test_the_category_is_predicted_in_any_pose(open3d):
    few = RegistrationSettings(rotations=200)
    placing = CategoryTemplates([Template(bracket(4000, 0), few), Template(plate(4000, 1), few)])
    for category, make in enumerate((bracket, plate)):
        for seed in (0, 1):
            placed = placing.place(turned(make(2500, 20 + seed), seed)[0])
            assert placed.category == category
            assert placed.logits.argmax() == category


def test_categories_are_searched_the_likelier_first_until_one_fits(open3d, monkeypatch):
    placing = CategoryTemplates([Template(plate(2000, 1)), Template(bracket(2000, 0)), Template(plate(2000, 2))])
    cloud, searched = bracket(1500, 3), []
    residuals, fitting = (0.5, 0.3, 0.4), [1]
    for i, template in enumerate(placing.templates):
        monkeypatch.setattr(template, "as_it_stands", lambda xyz, r=residuals[i]: Registration(np.eye(4), r))
        monkeypatch.setattr(
            template,
            "search",
            lambda xyz, start, i=i: (
                searched.append(i) or start._replace(residual=0.01 if i in fitting else 0.2 + i / 10)
            ),
        )
        monkeypatch.setattr(template, "accepts", lambda found, xyz: found.residual < 0.05)
    assert placing.place(cloud).category == 1
    assert searched == [1]
    fitting.clear()
    searched.clear()
    assert placing.place(cloud).category == 0  # none fits: all are searched, and the smallest residual decides
    assert searched == [1, 2, 0]


def test_a_small_thing_among_large_ones_is_turned_to_its_own_template(open3d):
    """The points of a large template are far apart for a small cloud: they must not pass for a fit."""
    placing = CategoryTemplates([Template(plate(2000, 1) * 12), Template(bracket(2000, 0))])
    cloud = turned(bracket(1500, 3), 4)[0]
    placed = placing.place(cloud)
    assert placed.category == 1
    assert placing.templates[1].accepts(placed.registration, cloud)


def test_a_large_cloud_is_not_searched_for_on_small_templates(open3d, monkeypatch):
    placing = CategoryTemplates([Template(plate(2000, 1) / 12), Template(bracket(2000, 0))])
    searched = []
    for i, template in enumerate(placing.templates):
        monkeypatch.setattr(template, "search", lambda xyz, start, i=i: searched.append(i) or start)
        monkeypatch.setattr(template, "accepts", lambda found, xyz: False)
    placing.place(turned(bracket(1500, 3), 4)[0])
    assert searched == [1]


def test_without_open3d_one_line_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"Registration needs open3d, which is not installed. Run: pip install open3d"):
        Template(bracket(500, 0)).register(bracket(500, 1))


def test_a_perfect_pose_is_accepted_at_any_density_and_a_shifted_one_is_not(open3d):
    for points in (500, 5000):
        template = Template(bracket(points, 0))
        cloud = bracket(3000, 1)
        distance = torch.cdist(cloud, template.xyz).amin(1)
        assert template.accepts(Registration(np.eye(4), distance.square().mean().sqrt().item()), cloud)
        assert not template.accepts(Registration(np.eye(4), 0.5), cloud)


@pytest.mark.usefixtures("open3d")
def test_poses_are_the_same_bits_with_any_number_of_threads():
    cloud, poses, before = turned(bracket(1500, 10), 0)[0], [], torch.get_num_threads()
    settings = RegistrationSettings(hypotheses=500, rotations=100)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            template = Template(bracket(1500, 0), settings)
            found = template.search(cloud, template.as_it_stands(cloud))
            poses.append((found.pose, found.residual))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(poses[0][0], poses[1][0])
    assert poses[0][1] == poses[1][1]
