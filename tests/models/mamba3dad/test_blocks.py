from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.models.mamba3dad.blocks import spatial_blocks


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_blocks_are_a_partition_of_nearly_equal_parts(patches: int, count: int, seed: int) -> None:
    count = min(count, patches)
    centres = torch.randn(patches, 3, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    blocks = spatial_blocks(centres, count)
    sizes = [len(block) for block in blocks]
    assert len(blocks) == count
    assert max(sizes) - min(sizes) <= 1
    assert sorted(torch.cat(blocks).tolist()) == list(range(patches))


def test_blocks_are_compact_and_do_not_depend_on_the_order_of_the_patches() -> None:
    centres = torch.randn(200, 3) * torch.tensor([3.0, 1.0, 0.2])
    blocks = spatial_blocks(centres, 8)
    spread = torch.stack([centres[block].std(0).norm() for block in blocks]).mean()
    assert spread < 0.5 * centres.std(0).norm()
    shuffle = torch.randperm(200)
    again = spatial_blocks(centres[shuffle], 8)
    assert [set(block.tolist()) for block in blocks] == [set(shuffle[block].tolist()) for block in again]
    with pytest.raises(ValueError, match="201 blocks"):
        spatial_blocks(centres, 201)
