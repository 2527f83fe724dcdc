from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from anomaly3d.models.components.standardise import TokenStandardiser
from anomaly3d.models.sedir.buffer import ContrastiveBuffer


def rows(values: list[int]) -> Tensor:
    """Embeddings that can be told apart: row i is (i, -i)."""
    return torch.tensor([[float(v), -float(v)] for v in values]).reshape(-1, 2)


def content(buffer: ContrastiveBuffer) -> list[tuple[int, int]]:
    """(value, category) from the oldest to the newest entry."""
    order = [i for i in buffer.stamp.argsort().tolist() if buffer.stamp[i] >= 0]
    return [(int(buffer.embedding[i, 0]), int(buffer.category[i])) for i in order]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=8))
def test_fifo_keeps_the_last_entries_in_order(size, steps):
    buffer, pushed = ContrastiveBuffer(size, 2), []
    for categories in steps:
        new = [(len(pushed) + i + 1, c) for i, c in enumerate(categories)]
        buffer.push(rows([v for v, _ in new]), torch.tensor([c for _, c in new], dtype=torch.long))
        pushed += new
        assert content(buffer) == pushed[-size:]
        assert len(buffer) == min(size, len(pushed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 3), max_size=30))
def test_balanced_evicts_the_oldest_of_the_fullest_category(size, categories):
    buffer, expected = ContrastiveBuffer(size, 2, "balanced"), []
    for value, category in enumerate(categories, start=1):
        buffer.push(rows([value]), torch.tensor([category]))
        if len(expected) == size:
            counts = Counter([c for _, c in expected] + [category])
            most = max(counts[c] for _, c in expected)
            expected.remove(next(e for e in expected if counts[e[1]] == most))
        expected.append((value, category))
        assert content(buffer) == expected


def test_balanced_keeps_a_rare_category_that_fifo_forgets():
    categories = [1] + [0] * 10
    kept = {}
    for eviction in ("fifo", "balanced"):
        buffer = ContrastiveBuffer(4, 2, eviction)
        buffer.push(rows(list(range(11))), torch.tensor(categories))
        kept[eviction] = sorted(buffer.category.tolist())
    assert kept == {"fifo": [0, 0, 0, 0], "balanced": [0, 0, 0, 1]}


def test_an_embedding_that_is_not_finite_is_not_kept():
    """It would stay for as many steps as the buffer is long, and with it a loss that is not a number."""
    buffer = ContrastiveBuffer(5, 2)
    bad = torch.tensor([[torch.nan, 0.0], [1.0, torch.inf]])
    buffer.push(torch.cat([rows([3]), bad, rows([4])]), torch.tensor([0, 1, 1, 0]))
    assert content(buffer) == [(3, 0), (4, 0)]


def test_entries_are_detached():
    buffer, z = ContrastiveBuffer(3, 2), rows([1]).requires_grad_()
    buffer.push(z, torch.tensor([0]))
    assert not buffer.embedding.requires_grad


def test_empty_buffer_is_refused():
    with pytest.raises(ValueError, match="buffer_size=0: give a value from 1"):
        ContrastiveBuffer(0, 2)


@pytest.mark.parametrize("eviction", ["fifo", "balanced"])
def test_checkpoint_roundtrip_is_exact(tmp_path: Path, eviction):
    buffer = ContrastiveBuffer(5, 2, eviction)
    buffer.push(rows(list(range(7))), torch.arange(7) % 3)
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored = ContrastiveBuffer(5, 2, eviction)
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    for one, other in zip(buffer.buffers(), restored.buffers(), strict=True):
        assert torch.equal(one, other)
    for b in (buffer, restored):  # and both go on in the same way
        b.push(rows([20, 21]), torch.tensor([0, 2]))
    assert content(buffer) == content(restored)


def _tokens(rank: int) -> Tensor:
    return torch.randn(2 - rank, 5, 3, generator=torch.Generator().manual_seed(rank))


def _rank(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    buffer = ContrastiveBuffer(6, 2)
    for step, sizes in enumerate([(2, 2), (2, 1), (0, 1)]):  # ranks with unequal and with no rows
        values = [100 * rank + 10 * step + i for i in range(sizes[rank])]
        buffer.push(rows(values), torch.full((len(values),), rank))
    standardiser = TokenStandardiser(3)
    standardiser.observe(_tokens(rank))
    state = buffer.state_dict() | standardiser.state_dict()
    torch.save((content(buffer), state), f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_gathered_buffer_and_statistics(tmp_path: Path):
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    (first, state), (second, other) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    everything = [(0, 0), (1, 0), (100, 1), (101, 1), (10, 0), (11, 0), (110, 1), (120, 1)]
    assert first == second == everything[-6:]
    assert all(torch.equal(state[k], other[k]) for k in state)
    tokens = torch.cat([_tokens(0), _tokens(1)]).flatten(0, 1)
    torch.testing.assert_close(state["mean"], tokens.mean(0))
    torch.testing.assert_close(state["variance"], tokens.var(0, correction=0))


@pytest.mark.parametrize(("eviction", "least", "most"), [("fifo", 0.15, 0.25), ("balanced", 0.0, 0.0)])
def test_with_forty_categories_a_fifth_of_the_steps_has_no_positive_unless_balanced(eviction, least, most):
    """Anomaly-ShapeNet's training: 40 categories of four clouds, one a step in any order, 64 entries."""
    buffer, generator = ContrastiveBuffer(64, 2, eviction), torch.Generator().manual_seed(0)
    clouds, without = torch.arange(160) % 40, []
    for epoch in range(12):
        for category in clouds[torch.randperm(160, generator=generator)]:
            if epoch >= 2:  # it is full, and every category has been seen
                without.append(not bool((buffer.category == category).any()))
            buffer.push(torch.zeros(1, 2), category[None])
    assert least <= sum(without) / len(without) <= most
