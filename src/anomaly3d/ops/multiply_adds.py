"""Multiply-adds of matrix products and attention, as torch counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Gives a function that says how many multiply-adds torch has made inside so far.

    Matrix products, convolutions and attention count, on any device; element-wise work, kernels of other libraries
    (mamba-ssm, pointnet2-ops) and what numpy, scipy and open3d do don't.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that the counter does not look into
    try:
        with FlopCounterMode(display=False, custom_mapping={attention: _attention}) as counter:
            yield lambda: counter.get_total_flops() // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of a call."""
    with counting() as so_far:
        run()
        return so_far()


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """Of the attention kernel on a CPU, which torch's counter does not know: Q K^T and its product with V."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])
