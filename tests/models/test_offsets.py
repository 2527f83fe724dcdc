"""Distances from the training clouds, in units of what is normal at the place, and scores joined with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_placing import trained, turned, wedge
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from anomaly3d.errors import InputError
from anomaly3d.models.components.completion import Completion
from anomaly3d.models.components.offsets import TemplateOffsets
from anomaly3d.models.components.placement import Placement
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PointCloudBatch


def clouds(count: int, n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, generator=generator) for _ in range(count)]


def averaged(values: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Naive: mean over the 16 nearest points."""
    near = [np.argsort([np.linalg.norm(x - y) for y in xyz], kind="stable")[:16] for x in xyz]
    return np.array([values[index].mean() for index in near])


def naive(groups: list[list[Tensor]], cloud: Tensor, category: int) -> np.ndarray:
    """The definition, by loops."""
    of_category = [c.numpy().astype(float) for c in groups[category]]
    places, expected = [], []
    for i, one in enumerate(of_category):
        if len(of_category) == 1:
            distance = [min(np.linalg.norm(x - y) for j, y in enumerate(one) if j != k) for k, x in enumerate(one)]
        else:
            others = [y for j, other in enumerate(of_category) if j != i for y in other]
            share = ((len(of_category) - 1) / len(of_category)) ** 0.5
            distance = [share * min(np.linalg.norm(x - y) for y in others) for x in one]
        places += list(one)
        expected += list(averaged(np.array(distance), one))
    xyz = cloud.numpy().astype(float)
    found = averaged(np.array([min(np.linalg.norm(x - y) for y in places) for x in xyz]), xyz)
    unit = [
        np.mean([expected[k] for k in np.argsort([np.linalg.norm(x - y) for y in places], kind="stable")[:16]])
        for x in xyz
    ]
    return found / np.array(unit)


@pytest.mark.parametrize("category", [0, 1, 2])
def test_offsets_are_distances_in_units_of_those_between_training_clouds(category: int) -> None:
    """Of three clouds, of two, and of one alone, whose own points are then the measure."""
    groups = [clouds(3, 40), clouds(2, 50, 1), clouds(1, 60, 2)]
    offsets = TemplateOffsets(edge=1e-4)
    offsets.keep(groups, [1.0, 1.0, 1.0])
    (cloud,) = clouds(1, 30, 3)
    np.testing.assert_allclose(offsets(cloud, category, 1.0).numpy(), naive(groups, cloud, category), rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_cloud_like_the_training_clouds_is_at_one_and_a_displaced_one_is_not(count: int) -> None:
    offsets = TemplateOffsets()
    offsets.keep([[wedge(3000, seed) for seed in range(count)]], [6.0])
    normal = offsets(wedge(3000, 9), 0, 6.0)
    assert normal.mean().item() == pytest.approx(1, abs=0.08)
    moved = wedge(3000, 9)
    dent = moved[:, 0] > 2
    moved[dent] += torch.tensor([0.5, 0.0, 0.0])
    assert offsets(moved, 0, 6.0)[dent].mean() > 1.8 * normal[dent].mean()


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_training_clouds_that_are_copies_expect_little_but_not_nothing(unit: float) -> None:
    cloud = unit * wedge(500, 0)
    offsets = TemplateOffsets()
    offsets.keep([[cloud, cloud]], [6 * unit])
    other = offsets(unit * wedge(500, 1), 0, 6 * unit)
    assert other.isfinite().all()
    assert 1 < other.mean() < 100
    assert offsets(cloud, 0, 6 * unit).mean() < 0.1  # two points in one voxel become one


def test_clouds_are_thinned_before_they_are_measured() -> None:
    offsets = TemplateOffsets(edge=0.1)
    offsets.keep([[offsets.thinned(wedge(9000, seed), 6.0) for seed in range(3)]], [6.0])
    assert offsets.rows is not None
    assert len(offsets.rows) < 3000
    found = offsets(wedge(9000, 9), 0, 6.0)
    assert len(found) == 9000
    assert found.mean().item() == pytest.approx(1, abs=0.3)


def test_a_checkpoint_carries_them() -> None:
    offsets, fresh = TemplateOffsets(), TemplateOffsets()
    offsets.keep([clouds(2, 40), clouds(1, 30, 1)], [1.0, 1.0])
    fresh.load_state_dict(offsets.state_dict())
    (cloud,) = clouds(1, 20, 2)
    assert torch.equal(fresh(cloud, 1, 1.0), offsets(cloud, 1, 1.0))


def test_a_share_of_offsets_needs_templates() -> None:
    with pytest.raises(InputError, match=r"offset_share: .* set register to true"):
        Mamba3dAD(backbone_size="tiny", backbone_weights="random", offset_share=0.5)


@pytest.mark.usefixtures("open3d")
def test_any_share_suits_weights_that_were_trained_with_one_and_none_those_that_were_not() -> None:
    measuring = trained("sedir", relative=True, offset_share=0.5)
    state, trained_with = measuring.state_dict(), measuring.fixed_settings()
    plain = trained("sedir", relative=True)
    plain.load_state_dict(state)
    plain.load_state_dict(trained("sedir", relative=True).state_dict())  # and those of one without
    assert plain.placement is not None
    assert plain.placement.offsets is None
    assert plain.fixed_settings().keys() | {"offset_edge", "offset_neighbours"} == trained_with.keys()
    without = {name: value for name, value in state.items() if "placement.offsets" not in name}
    with pytest.raises(InputError, match="no training clouds to measure distances from"):
        trained("sedir", relative=True, offset_share=0.5).load_state_dict(without)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"register": True}, "register and relative to true"),
        ({"register": True, "relative": True, "normalise": "instance"}, "normalise to none"),
        ({"register": True, "relative": True, "offset_edge": 0.0}, "offset_edge"),
        ({"register": True, "relative": True, "offset_neighbours": 0}, "offset_neighbours"),
        ({"offset_share": 1.5}, "offset_share=1.5: give a value"),
        ({"offset_share": float("nan")}, "offset_share=nan: give a value"),
    ],
)
@pytest.mark.usefixtures("open3d")
def test_a_share_of_offsets_needs_errors_in_their_unit(settings: dict[str, Any], message: str) -> None:
    both: dict[str, Any] = {"offset_share": 0.5, **settings}
    with pytest.raises(InputError, match=message):
        SeDiR(backbone_size="tiny", backbone_weights="random", **both)


@pytest.mark.parametrize(("name", "settings"), [("sedir", {"relative": True}), ("mamba", {})])
@pytest.mark.usefixtures("open3d")
def test_scores_are_the_model_s_and_the_offsets_by_their_share(name: str, settings: dict[str, Any]) -> None:
    """Of Mamba3dAD, whose scores are logits, the logarithms."""
    model = trained(name, offset_share=0.25, **settings)
    assert model.placement is not None
    model.finish_pass()
    model.eval()
    batch = PointCloudBatch.pack([turned(wedge(2500, 5), 1), turned(wedge(2000, 6, 1.0), 2)], ["a", "b"])
    joined = model.score(batch)
    assert joined.object_scores.tolist() == [scores.max().item() for scores in batch.split(joined.point_scores)]
    model.offset_share = 0
    alone = model.score(batch).point_scores
    placed = model.place_predicted(batch).batch
    offsets = torch.cat([model.placement.offset(xyz, c) for c, xyz in enumerate(placed.clouds())])
    offsets = offsets if name == "sedir" else offsets.log()
    torch.testing.assert_close(joined.point_scores, 0.75 * alone + 0.25 * offsets)


@pytest.mark.usefixtures("open3d")
def test_the_pose_of_a_scan_changes_its_offsets_no_more_than_registration_does() -> None:
    model = trained("sedir", relative=True, offset_share=1.0)
    model.finish_pass()
    model.eval()
    cloud = wedge(2500, 5)
    one, two = (model.score(PointCloudBatch.pack([turned(cloud, k)], ["a"])).point_scores for k in (3, 4))
    assert (one - two).abs().mean() < 0.1 * one.mean()


def _placed_by(names: list[str]) -> dict[str, Tensor]:
    """The state of a placement that has seen these of four clouds of two categories."""
    placement = Placement(Completion("strict"), hypotheses=500, offsets=TemplateOffsets())
    for name in names:
        category, seed = int(name[0]), int(name[1])
        cloud = turned(wedge(1500, seed, 2.0 - category), seed)
        placement.observe(PointCloudBatch.pack([cloud], [name], category=[category]))
    placement.finish_pass(["flat", "tall"])
    return placement.state_dict()


def _rank(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(_placed_by([["02", "11"], ["10", "01"]][rank]), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("open3d")
def test_two_processes_keep_the_clouds_of_both(tmp_path: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    alone = _placed_by(["01", "02", "10", "11"])
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state.keys() == alone.keys()
        for name, value in state.items():
            torch.testing.assert_close(value, alone[name], msg=name)


@pytest.mark.usefixtures("open3d")
def test_thresholds_belong_to_a_share() -> None:
    """And to what else makes scores of errors."""
    relative: dict[str, Any] = {"relative": True}
    ways = [{}, relative, relative | {"offset_share": 0.5}, relative | {"relative_neighbours": 3}]
    ways += [{"smooth": "none"}, {"complete": False}, {"hypotheses": 500}, {"num_groups": 30}]
    made = [trained("sedir", **way).scoring_settings() for way in ways]
    assert all(made.count(one) == 1 for one in made)
    mamba = [trained("mamba", **way).scoring_settings() for way in ({}, {"offset_share": 0.5}, {"smooth_sigma": 2.0})]
    assert all(mamba.count(one) == 1 for one in mamba)
