from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from anomaly3d.errors import InputError
from anomaly3d.ops import knn as knn_module
from anomaly3d.ops.knn import knn

BACKENDS = ["torch", "kdtree"]


def brute_force(query: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(query[:, None].astype(np.float64) - points[None], axis=-1)
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, index, 1), index


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 7, 200])
def test_matches_brute_force(backend: str, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    query, points = torch.randn(2, 33, 3, generator=generator), torch.randn(2, 200, 3, generator=generator)
    distance, index = knn(query, points, k, backend)
    assert distance.shape == index.shape == (2, 33, k)
    assert index.dtype == torch.int64
    for b in range(2):
        expected, expected_index = brute_force(query[b].numpy(), points[b].numpy(), k)
        assert_close(distance[b], torch.from_numpy(expected).float())
        assert np.array_equal(index[b].numpy(), expected_index)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_origin_is_as_exact(backend: str) -> None:
    """|a|^2 + |b|^2 - 2ab has no correct digit here."""
    points = torch.rand(1, 100, 3, generator=torch.Generator().manual_seed(0)) + 1000
    distance, _ = knn(points, points, 2, backend)
    expected, _ = brute_force(points[0].numpy(), points[0].numpy(), 2)
    assert_close(distance[0], torch.from_numpy(expected).float(), rtol=1e-5, atol=0)


@settings(max_examples=40, deadline=None)
@given(points=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=60), data=st.data())
def test_distances_agree_under_ties_and_duplicates(points: list, data: st.DataObject) -> None:
    cloud = torch.tensor(points, dtype=torch.float32)[None]
    k = data.draw(st.integers(1, len(points)))
    expected, _ = brute_force(cloud[0].numpy(), cloud[0].numpy(), k)
    for backend in BACKENDS:
        distance, index = knn(cloud, cloud, k, backend)
        assert_close(distance[0], torch.from_numpy(expected).float())
        assert_close((cloud[0][:, None] - cloud[0][index[0]]).norm(dim=-1), distance[0])
        assert all(len(row.unique()) == k for row in index[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_points_permutes_the_indices(backend: str) -> None:
    generator = torch.Generator().manual_seed(1)
    query, points = torch.rand(1, 20, 3, generator=generator), torch.rand(1, 500, 3, generator=generator)
    order = torch.randperm(500, generator=generator)
    index, permuted = knn(query, points, 9, backend)[1], knn(query, points[:, order], 9, backend)[1]
    assert torch.equal(index, order[permuted])


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = torch.rand(2, 100, 3, generator=torch.Generator().manual_seed(2))
    whole = knn(cloud, cloud, 5, "torch")
    monkeypatch.setattr(knn_module, "_CHUNK_DISTANCES", 1500)  # seven rows at a time
    for a, b in zip(whole, knn(cloud, cloud, 5, "torch"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_reach_the_distances(backend: str) -> None:
    cloud = torch.rand(1, 100, 3, generator=torch.Generator().manual_seed(3))
    expected = knn(cloud, cloud, 5, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance, index = knn(cloud, cloud, 5, backend)
    assert distance.dtype == torch.float32
    assert torch.equal(distance, expected[0])
    assert torch.equal(index, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_coincident_points(backend: str) -> None:
    cloud = torch.ones(1, 5_000, 3)
    distance, index = knn(cloud[:, :3], cloud, 10, backend)
    assert not distance.any()
    assert index.min() >= 0
    assert index.max() < 5_000


@pytest.mark.parametrize(
    ("query", "points", "k", "message"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), 5, "k = 5 among 4"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), 0, "k = 0"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 0, 3), 1, "points is empty"),
        (torch.zeros(2, 2, 3), torch.zeros(1, 4, 3), 1, "2 batches"),
        (torch.zeros(1, 2, 3), torch.full((1, 4, 3), torch.inf), 1, "points has NaN or infinite"),
        (torch.zeros(1, 2, 3, dtype=torch.int32), torch.zeros(1, 4, 3), 1, "query must be floating"),
    ],
)
def test_bad_input_is_refused(query: torch.Tensor, points: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn(query, points, k)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InputError, match="kdtree"):
        knn(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), 1, backend="faiss")
