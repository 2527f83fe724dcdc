import numpy as np
import pytest
from naive_regions import flood

from anomaly3d.metrics.regions import label_regions


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one[:, None] == one, other[:, None] == other)


def plane(seed: int, count: int = 800) -> tuple[np.ndarray, np.ndarray]:
    """A flat square with three labelled discs, the last two of which touch."""
    rng = np.random.default_rng(seed)
    xyz = np.column_stack([rng.random((count, 2)), np.zeros(count)]).astype(np.float32)
    discs = [((0.2, 0.2), 0.12), ((0.7, 0.7), 0.12), ((0.85, 0.7), 0.08)]
    mask = np.any([np.linalg.norm(xyz[:, :2] - centre, axis=1) < radius for centre, radius in discs], axis=0)
    return xyz, mask


@pytest.mark.parametrize("radius", [1.1, 2.0, 6.4])
@pytest.mark.parametrize("seed", range(2))
def test_equals_flooding(seed, radius):
    xyz, mask = plane(seed)
    assert same_partition(label_regions(xyz, mask, radius), flood(xyz, mask, radius))


@pytest.mark.parametrize("seed", range(5))
def test_separate_defects_are_regions_and_touching_ones_are_one(seed):
    xyz, mask = plane(seed, 5000)
    region = label_regions(xyz, mask)
    assert len(np.unique(region)) == 2
    left = xyz[mask][:, 0] < 0.45
    assert len(np.unique(region[left])) == len(np.unique(region[~left])) == 1


def test_unit_pose_and_order_change_nothing():
    xyz, mask = plane(0)
    expected = label_regions(xyz, mask)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    assert same_partition(label_regions(1000 * xyz @ rotation + 7, mask), expected)
    order = np.random.default_rng(2).permutation(len(xyz))
    position = np.empty(len(xyz), dtype=int)
    position[order] = np.arange(len(xyz))
    shuffled = np.full(len(xyz), -1)
    shuffled[mask[order].nonzero()[0]] = label_regions(xyz[order], mask[order])
    assert same_partition(shuffled[position][mask], expected)


def test_a_stray_point_joins_nothing():
    xyz, mask = plane(0, 5000)
    stray = np.concatenate([xyz, [[1e6, 0, 0]]]).astype(np.float32)
    found = label_regions(stray, np.append(mask, True))
    assert len(np.unique(found)) == 3
    assert same_partition(found[:-1], label_regions(xyz, mask))


def test_no_one_and_two_points():
    xyz = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [50, 0, 0]], dtype=np.float32)
    assert len(label_regions(xyz, np.zeros(4, dtype=bool))) == 0
    assert label_regions(xyz, np.array([False, True, False, False])).tolist() == [0]
    assert label_regions(xyz, np.array([True, True, False, False])).tolist() == [0, 0]


def test_points_at_one_place_are_one_region():
    xyz = np.zeros((5, 3), dtype=np.float32)
    assert label_regions(xyz, np.ones(5, dtype=bool)).tolist() == [0] * 5


@pytest.mark.parametrize("copied", [0, 1, 30, 1000])
def test_points_that_are_stored_twice_change_nothing(copied):
    xyz, mask = plane(3)
    again = mask.nonzero()[0][:copied]
    doubled, marked = np.concatenate([xyz, xyz[again]]), np.append(mask, np.ones(len(again), dtype=bool))
    found = label_regions(doubled, marked)
    assert same_partition(found, flood(doubled, marked, 6.4))
    assert same_partition(found[: mask.sum()], label_regions(xyz, mask))
    assert len(np.unique(found)) == 2


def test_copies_of_a_point_cost_no_memory():
    import tracemalloc

    xyz, mask = plane(1)
    again = np.repeat(xyz[mask][:1], 20_000, axis=0)  # a pair of each two would take 3 GB
    tracemalloc.start()
    found = label_regions(np.concatenate([xyz, again]), np.append(mask, np.ones(20_000, dtype=bool)))
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert same_partition(found[: mask.sum()], label_regions(xyz, mask))
    assert set(found[mask.sum() :]) == {found[0]}
