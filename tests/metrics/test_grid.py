import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.metrics.grid import CELLS, MOST, Grid, key_value, ordered_key

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
TINY, LARGE = 1e-45, 3.4028235e38


@settings(deadline=None)
@given(st.lists(floats, min_size=2, max_size=50))
def test_keys_have_the_order_of_the_floats(values):
    scores = torch.tensor(values, dtype=torch.float32)
    keys = ordered_key(scores)
    assert torch.equal(key_value(keys), scores)
    assert torch.equal(keys[:, None] < keys, scores[:, None] < scores)
    assert torch.equal(keys[:, None] == keys, scores[:, None] == scores)  # -0 and 0 too


def test_neighbouring_floats_have_neighbouring_keys():
    values = np.array([-LARGE, -1.0, -TINY, 0.0, 1.0, 2.0 - 2**-23], dtype=np.float32)
    above = np.nextafter(values, np.float32(np.inf))
    assert (ordered_key(torch.from_numpy(above)) - ordered_key(torch.from_numpy(values)) == 1).all()


def random_grid(seed: int) -> Grid:
    level = torch.randint(0, 4, (CELLS,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    level[CELLS // 2 + 4064] = MOST  # the cell that begins with 1.0
    return Grid(level)


@settings(deadline=None)
@given(st.lists(floats | st.floats(1, 1.03125, width=32), min_size=1, max_size=50), st.integers(0, 3))
def test_a_score_reaches_the_edge_of_its_bin_and_not_the_next(values, seed):
    grid = random_grid(seed)
    scores = torch.tensor(values, dtype=torch.float32)
    for score, index in zip(scores.tolist(), grid.index(scores).tolist(), strict=True):
        assert grid.edge(index) <= score
        next_edge = grid.edge(index + 1)
        assert score < next_edge or next_edge == pytest.approx(LARGE)


def test_bins_ascend_and_a_full_cell_tells_every_float_apart():
    grid = random_grid(0)
    scores = torch.cat([torch.randn(5000), torch.tensor([-LARGE, LARGE, TINY, -TINY, 0.0])]).sort().values
    index = grid.index(scores)
    assert (index.diff() >= 0).all()
    assert 0 <= index[0] <= index[-1] < grid.bins
    ones = key_value(torch.arange(1000) + ordered_key(torch.ones(1)).long())
    assert torch.equal(grid.index(ones).diff(), torch.ones(999, dtype=torch.int32))


@pytest.mark.parametrize("seed", range(3))
def test_counts_move_to_a_coarser_grid_as_if_counted_there(seed):
    fine = random_grid(seed)
    coarse = Grid(torch.minimum(fine.level, random_grid(seed + 10).level))
    scores = torch.cat([torch.randn(20_000), 1 + 0.02 * torch.rand(5000)])
    counts = [torch.bincount(grid.index(scores), minlength=fine.bins) for grid in (fine, coarse)]
    assert torch.equal(fine.move(counts[0], coarse), counts[1])
    assert torch.equal(fine.cell_counts(counts[0]), coarse.cell_counts(counts[1]))


def test_a_refined_grid_stays_within_its_room_and_is_finest_where_most_is():
    share = torch.rand(CELLS) ** 20
    share /= share.sum()
    free = torch.rand(CELLS) < 0.5
    grid = Grid(torch.zeros(CELLS, dtype=torch.int8)).refined(free, share, 50_000)
    assert CELLS < grid.bins <= CELLS + 50_000
    assert (grid.level[~free] == 0).all()
    order = share[free].argsort()
    assert (grid.level[free][order].diff() >= 0).all()
    assert grid.shrunk(20_000).bins <= 20_000
