from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.errors import InputError
from anomaly3d.ops import backend as backends
from anomaly3d.ops.fps import _fps_pointnet2, farthest_point_sampling, outermost


def ellipsoid(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True) * torch.tensor([1.0, 0.7, 0.3])


def brute_force(xyz: np.ndarray, k: int, start: int) -> list[int]:
    """By the definition, from all pairs: the point not chosen whose nearest chosen point is farthest."""
    pairs = ((xyz[:, None].astype(np.float64) - xyz[None]) ** 2).sum(-1)
    chosen = [start]
    while len(chosen) < k:
        nearest = pairs[chosen].min(0)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


@pytest.mark.parametrize("backend", ["torch", "bucketed"])
def test_matches_the_definition(backend: str) -> None:
    xyz = torch.stack([ellipsoid(300, 1), ellipsoid(300, 2)])
    start = torch.tensor([17, 0])
    index = farthest_point_sampling(xyz, 40, start, backend)
    assert index.dtype == torch.int64
    for b in range(2):
        assert index[b].tolist() == brute_force(xyz[b].numpy(), 40, int(start[b]))


@pytest.mark.parametrize("n", [1, 31, 33, 2_000, 30_000])
def test_bucketed_gives_the_indices_of_the_loop(n: int) -> None:
    xyz = torch.stack([ellipsoid(n, 3), torch.rand(n, 3, generator=torch.Generator().manual_seed(4))])
    k = min(n, 300)
    assert torch.equal(
        farthest_point_sampling(xyz, k, backend="bucketed"), farthest_point_sampling(xyz, k, backend="torch")
    )


@settings(max_examples=60, deadline=None)
@given(
    # Few coordinates, many points: ties and duplicates are everywhere.
    points=st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=1, max_size=120),
    scale=st.sampled_from([1.0, 0.1, 1e-6, 1e6]),
    data=st.data(),
)
def test_ties_and_duplicates_break_alike(points: list, scale: float, data: st.DataObject) -> None:
    xyz = torch.tensor(points, dtype=torch.float32)[None] * scale
    k = data.draw(st.integers(1, len(points)))
    start = torch.tensor([data.draw(st.integers(0, len(points) - 1))])
    loop = farthest_point_sampling(xyz, k, start, "torch")
    assert torch.equal(loop, farthest_point_sampling(xyz, k, start, "bucketed"))
    assert loop[0, 0] == start[0]
    assert len(loop[0].unique()) == k


@pytest.mark.parametrize("backend", ["torch", "bucketed"])
def test_ties_take_the_lowest_index(backend: str) -> None:
    # Corners of a square from its middle: all four are equally far, and stay so whichever is taken.
    square = torch.tensor([[[1.0, 1, 0], [0, 0, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]])
    assert farthest_point_sampling(square, 5, torch.tensor([1]), backend).tolist() == [[1, 0, 2, 3, 4]]


@pytest.mark.parametrize("backend", ["torch", "bucketed"])
def test_default_start_does_not_depend_on_the_order(backend: str) -> None:
    xyz = ellipsoid(5_000, 5)
    order = torch.randperm(5_000, generator=torch.Generator().manual_seed(0))
    first = xyz[farthest_point_sampling(xyz[None], 64, backend=backend)[0]]
    second = xyz[order][farthest_point_sampling(xyz[order][None], 64, backend=backend)[0]]
    assert torch.equal(first, second)
    centre = xyz.double().mean(0)
    assert (first[0] - centre).norm() == (xyz - centre).norm(dim=1).max()


@pytest.mark.parametrize("backend", ["torch", "bucketed"])
def test_degenerate_clouds(backend: str) -> None:
    one = torch.tensor([[[1.0, 2, 3]]])
    assert farthest_point_sampling(one, 1, backend=backend).tolist() == [[0]]
    same = one.expand(1, 70, 3)
    assert farthest_point_sampling(same, 70, backend=backend).tolist() == [list(range(70))]
    line = torch.linspace(0, 1, 9)[None, :, None] * torch.tensor([1.0, 0, 0])
    assert farthest_point_sampling(line, 3, torch.tensor([0]), backend).tolist() == [[0, 8, 4]]


def test_half_precision_and_autocast_do_not_change_the_choice() -> None:
    xyz = ellipsoid(500)[None]
    expected = farthest_point_sampling(xyz, 50, backend="torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(farthest_point_sampling(xyz, 50, backend="torch"), expected)
    half = xyz.half()
    assert torch.equal(farthest_point_sampling(half, 50), farthest_point_sampling(half.float(), 50))


@pytest.mark.parametrize(
    ("xyz", "k", "start", "message"),
    [
        (torch.zeros(1, 4, 3), 5, None, "k = 5 from clouds of 4"),
        (torch.zeros(1, 4, 3), 0, None, "k = 0"),
        (torch.zeros(1, 0, 3), 1, None, "empty"),
        (torch.zeros(1, 4, 2), 1, None, "shape"),
        (torch.zeros(1, 4, 3, dtype=torch.int64), 1, None, "floating point"),
        (torch.full((1, 4, 3), torch.nan), 1, None, "NaN"),
        (torch.zeros(1, 4, 3), 1, torch.tensor([4]), "start"),
        (torch.zeros(1, 4, 3), 1, torch.tensor([0, 0]), "start"),
    ],
)
def test_bad_input_is_refused(xyz: torch.Tensor, k: int, start: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        farthest_point_sampling(xyz, k, start)


def test_unknown_and_missing_backends_are_refused() -> None:
    with pytest.raises(InputError, match="bucketed"):
        farthest_point_sampling(torch.zeros(1, 4, 3), 1, backend="fast")
    if backends.find_package("pointnet2_ops") is None:
        with pytest.raises(InputError, match=r"pip install .*Pointnet2_PyTorch"):
            farthest_point_sampling(torch.zeros(1, 4, 3), 1, backend="pointnet2")


def test_outermost_takes_the_lowest_of_equals() -> None:
    assert outermost(torch.tensor([[[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]]])).tolist() == [1]


@pytest.fixture
def fake_pointnet2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel's documented behaviour: starts at 0, passes over points with |p|^2 <= 1e-3, no tie rule of ours."""

    def furthest_point_sample(xyz: torch.Tensor, k: int) -> torch.Tensor:
        assert xyz.is_contiguous()
        assert xyz.dtype == torch.float32
        clouds = []
        for cloud in xyz:
            ignored = cloud.square().sum(1) <= 1e-3
            distance, chosen = torch.full((len(cloud),), 1e10), [0]
            while len(chosen) < k:
                distance = torch.minimum(distance, (cloud - cloud[chosen[-1]]).square().sum(1))
                chosen.append(int(distance.masked_fill(ignored, -1).argmax()))
            clouds.append(torch.tensor(chosen, dtype=torch.int32))
        return torch.stack(clouds)

    package, utils = ModuleType("pointnet2_ops"), ModuleType("pointnet2_ops.pointnet2_utils")
    package.__spec__ = ModuleSpec("pointnet2_ops", None)
    utils.furthest_point_sample = furthest_point_sample  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "pointnet2_ops", package)
    monkeypatch.setitem(sys.modules, "pointnet2_ops.pointnet2_utils", utils)
    backends._try_import.cache_clear()
    yield
    backends._try_import.cache_clear()


@pytest.mark.usefixtures("fake_pointnet2")
def test_the_kernel_is_led_round_its_peculiarities() -> None:
    # Dense round the origin, where the kernel is blind, and with starts that are not 0.
    xyz = torch.stack([ellipsoid(400, 1) * 0.02, ellipsoid(400, 2) + 5])
    start = torch.tensor([123, 0])
    assert torch.equal(_fps_pointnet2(xyz, 50, start), farthest_point_sampling(xyz, 50, start, "torch"))
