"""Defects in training clouds: what moves, which way, and what is labelled."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly3d.models.mamba3dad.point_defects import PointDefects, moved_share, slot_labels


def plate(points: int = 4000) -> Tensor:
    return torch.cat([2 * torch.rand(points, 2) - 1, torch.zeros(points, 1)], dim=1)


def test_bulges_and_dents_move_labelled_points_along_the_normal() -> None:
    defects, sides = PointDefects(count=1, holes=0), set()
    for seed in range(20):
        torch.manual_seed(seed)
        cloud = plate()
        altered = defects(cloud)
        moved = altered.xyz - cloud
        assert moved[:, :2].abs().max() < 1e-5  # the plate's normal is z
        assert not altered.defective[moved[:, 2] == 0].any()
        assert altered.defective[moved[:, 2].abs() > 0.1 * 0.6 * 0.3 * 1.01].all()
        sides |= set(moved[:, 2].sign().tolist())
    assert sides == {-1.0, 0.0, 1.0}


def test_heights_and_radii_are_those_asked_for() -> None:
    defects = PointDefects(count=1, radius=(0.3, 0.3), height=(0.5, 0.5), elongation=1.0, holes=0)
    for seed in range(12):
        torch.manual_seed(seed)
        cloud = plate(20_000)
        altered = defects(cloud)
        if not altered.defective.any():  # no spot was drawn
            continue
        assert 0.14 < (altered.xyz - cloud)[:, 2].abs().max() <= 0.15
        spot = cloud[(altered.xyz != cloud).any(dim=1)]
        centre = cloud[(altered.xyz - cloud)[:, 2].abs().argmax()]
        assert (spot - centre).norm(dim=1).max() < 0.32


def test_elongated_spots_are_longer_than_wide() -> None:
    ratios: dict[float, list[float]] = {1.0: [], 8.0: []}
    for elongation, found in ratios.items():
        defects = PointDefects(count=1, radius=(0.1, 0.1), elongation=elongation, holes=0)
        for seed in range(60):
            torch.manual_seed(seed)
            cloud = plate()
            spot = cloud[defects(cloud).defective][:, :2]
            if len(spot) > 20:
                spread = torch.linalg.svdvals(spot - spot.mean(0))
                found.append(float(spread[0] / spread[1]))
    assert torch.tensor(ratios[1.0]).median() < 1.2
    assert torch.tensor(ratios[8.0]).median() > 1.1 * torch.tensor(ratios[1.0]).median()
    assert max(ratios[8.0]) > 2


def test_holes_take_points_away_and_label_the_rim() -> None:
    torch.manual_seed(1)
    cloud = plate()
    altered = PointDefects(count=6, holes=1.0, elongation=1.0)(cloud)
    assert len(cloud) / 2 <= len(altered.xyz) < len(cloud)
    left = {tuple(point) for point in altered.xyz.tolist()}
    kept = torch.tensor([tuple(point) in left for point in cloud.tolist()])
    assert kept.sum() == len(altered.xyz)  # the others stay where they were
    gone, rim = cloud[~kept], altered.xyz[altered.defective]
    assert torch.cdist(rim, gone).amin(dim=1).max() < 0.3
    assert altered.defective.any()
    assert not altered.defective.all()


def test_the_cloud_itself_is_left_alone_and_a_seed_repeats() -> None:
    cloud = plate()
    before = cloud.clone()
    torch.manual_seed(5)
    first = PointDefects()(cloud)
    torch.manual_seed(5)
    second = PointDefects()(cloud)
    assert torch.equal(cloud, before)
    assert torch.equal(first.xyz, second.xyz)
    assert torch.equal(first.defective, second.defective)
    assert torch.equal(PointDefects(count=0)(cloud).xyz, cloud)


def test_tiny_and_coincident_clouds_survive() -> None:
    for cloud in (torch.zeros(20, 3), torch.randn(5, 3), torch.randn(1, 3)):
        for _ in range(10):
            assert torch.isfinite(PointDefects()(cloud).xyz).all()


def test_labels_against_loops() -> None:
    defective, index = torch.rand(50) < 0.3, torch.randint(50, (6, 8))
    shares = moved_share(defective, index)
    assert shares.tolist() == [sum(bool(defective[i]) for i in row) / 8 for row in index]
    plan = torch.rand(2, 12, 5)
    plan = plan / plan.sum(dim=1, keepdim=True)
    both = torch.stack([shares, shares.flip(0)])
    found = slot_labels(both, plan)
    for b in range(2):
        for s in range(5):
            expected = sum(float(plan[b, t, s]) * min(1.0, 2 * float(both[b, t % 6])) for t in range(12))
            torch.testing.assert_close(found[b, s].item(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert slot_labels(both, plan).equal(found)
