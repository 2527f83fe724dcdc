from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from anomaly3d.ops.tree import kd_tree, search


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_search_has_torch_s_threads_and_their_number_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    tree = kd_tree(generator.normal(size=(500, 3)))
    query, asked, found = generator.normal(size=(7, 40, 3)), [], []
    plain = tree.query

    def watched(*args: Any, workers: int, **kwargs: Any) -> Any:
        asked.append(workers)
        return plain(*args, workers=workers, **kwargs)

    monkeypatch.setattr(tree, "query", watched)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(search(tree, query, 5, reach=0.4))
    assert asked == [1, 2, 3]
    for distance, index in found[1:]:
        np.testing.assert_array_equal(distance, found[0][0])
        np.testing.assert_array_equal(index, found[0][1])
