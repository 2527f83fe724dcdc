from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from anomaly3d.models.components import memory
from anomaly3d.models.components.coreset import greedy_coreset
from anomaly3d.models.components.memory import CategoryBanks, nearest, pack, reweighted, unpack
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.ops.fps import farthest_point_sampling


@pytest.mark.parametrize("width", [3, 33])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("far", [0.0, 500.0])
@pytest.mark.parametrize("values", [1 << 26, 600])
def test_nearest_is_brute_force(width, k, far, values, monkeypatch):
    monkeypatch.setattr(memory, "_CHUNK_DISTANCES", 1000)  # many pieces
    monkeypatch.setattr(memory, "_CHUNK_VALUES", values)  # the bank whole, or in pieces too
    query, bank = torch.randn(70, width) + far, torch.randn(300, width) + far
    distance, index = nearest(query, bank, k)
    full = cdist(query.double().numpy(), bank.double().numpy())
    np.testing.assert_array_equal(index.numpy(), full.argsort(1)[:, :k])
    np.testing.assert_allclose(distance.numpy(), np.sort(full, 1)[:, :k], rtol=1e-5)


@pytest.mark.parametrize("width", [3, 33])
def test_a_row_of_the_bank_is_at_distance_zero(width):
    bank = 100 + torch.randn(200, width)
    distance, index = nearest(bank[50:60], bank)
    assert torch.equal(distance, torch.zeros(10, 1))
    assert index[:, 0].tolist() == list(range(50, 60))
    with pytest.raises(ValueError, match="201 nearest"):
        nearest(bank, bank, 201)


@pytest.mark.parametrize("first", [None, 0, 119])
def test_coreset_is_the_naive_loop(first):
    features = torch.randn(120, 20)
    x = features.double().numpy()
    chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmax()) if first is None else first]
    while len(chosen) < 30:
        chosen.append(int(cdist(x, x[chosen]).min(1).argmax()))
    assert greedy_coreset(features, 30, projected=None, first=first).tolist() == chosen
    assert greedy_coreset(features, 30, projected=64, first=first).tolist() == chosen  # narrower than the projection


def test_projected_coreset_is_seeded_and_covers_nearly_as_well():
    clusters = 10 * torch.randn(40, 300)
    features = (clusters[:, None] + torch.randn(40, 10, 300)).flatten(0, 1)

    def cover(index: torch.Tensor) -> float:
        return torch.cdist(features, features[index]).amin(1).max().item()

    exact = greedy_coreset(features, 40, projected=None)
    same, again, other = (greedy_coreset(features, 40, seed=seed, projected=64) for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert cover(same) < 1.25 * cover(exact)
    assert cover(torch.arange(40)) > 3 * cover(exact)  # four clusters cover no other
    assert greedy_coreset(features, 400).tolist() == list(range(400))


def test_coincident_features_are_chosen_once():
    index = greedy_coreset(torch.randn(10, 4).repeat(3, 1), 30 - 1)
    assert len(set(index.tolist())) == 29


def test_the_category_is_the_one_whose_bank_is_nearest_to_most_features():
    rows, offsets = pack([torch.randn(50, 5), torch.randn(40, 5) + 10, torch.randn(30, 5) - 10])
    assert [len(part) for part in unpack(rows, offsets)] == [50, 40, 30]
    query = torch.randn(21, 5) + 10
    query[:10] = -10  # a large defect that looks like another category
    found = CategoryBanks(rows, offsets).recognise(query)
    assert found.category == 1
    expected = torch.cdist(query.double(), rows[50:90].double())
    torch.testing.assert_close(found.distance, expected.amin(1).float())
    assert torch.equal(found.index, expected.argmin(1))
    medians = [-torch.cdist(query.double(), part.double()).amin(1).median() for part in unpack(rows, offsets)]
    torch.testing.assert_close(found.logits, torch.stack(medians).float())


def test_reweighting_is_equation_7():
    features, bank = torch.randn(40, 6), torch.randn(60, 6)
    distance, index = (part[:, 0] for part in nearest(features, bank))
    f, m = features.double().numpy(), bank.double().numpy()
    worst = int(distance.argmax())
    star = m[index[worst]]
    near = np.linalg.norm(m - star, axis=1).argsort()[1:3]  # public code leaves the row itself out
    exponents = np.exp(np.linalg.norm(f[worst] - m[near], axis=1) / np.sqrt(6))
    own = np.linalg.norm(f[worst] - star)
    expected = (1 - np.exp(own / np.sqrt(6)) / exponents.sum()) * own
    assert reweighted(features, distance, index, bank, 3).item() == pytest.approx(expected, rel=1e-5)


def test_a_bank_of_one_row_gives_the_distance():
    features, bank = torch.randn(9, 6), torch.randn(1, 6)
    distance, index = (part[:, 0] for part in nearest(features, bank))
    assert reweighted(features, distance, index, bank, 3) == distance.max() > 0


def test_point_scoring_against_a_loop():
    at, xyz, scores = torch.randn(30, 3), torch.randn(100, 3), torch.rand(30)
    scoring = PointScoring(neighbours=4, top_share=0.05)
    near = cdist(at.numpy(), at.numpy()).argsort(1)[:, :4]
    smooth = np.array([scores.numpy()[row].mean() for row in near])
    np.testing.assert_allclose(scoring.points(scores, at, at).numpy(), smooth, rtol=1e-5)
    points = scoring.points(scores, at, xyz)
    for i in range(0, 100, 9):
        distance = np.linalg.norm(at.numpy() - xyz[i].numpy(), axis=1)
        three = distance.argsort()[:3]
        weight = 1 / distance[three]
        assert points[i].item() == pytest.approx((smooth[three] * weight).sum() / weight.sum(), rel=1e-4)
    assert scoring.object(points).item() == pytest.approx(np.sort(points.numpy())[-5:].mean())
    assert PointScoring(1, 0.0).object(points) == points.max()


def test_of_points_the_coreset_is_farthest_point_sampling():
    points = torch.randn(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(greedy_coreset(points, 200), farthest_point_sampling(points[None], 200)[0])
