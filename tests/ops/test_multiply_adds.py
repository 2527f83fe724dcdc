"""What torch's counter counts: it is blind to operations that it does not know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anomaly3d.models.mamba3dad.discriminator import Discriminator
from anomaly3d.ops.multiply_adds import counting, multiply_adds


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_fused_layers_are_counted(mode: type) -> None:
    tokens, width, hidden = 64, 32, 48
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width  # four projections, Q K^T and its product with V
    x = torch.randn(1, tokens, width)
    with mode():
        layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True).eval()
        assert multiply_adds(lambda: layer(x)) == attention + 2 * tokens * width * hidden
        found = multiply_adds(lambda: Discriminator(width, 4, 0.0, 16).eval()(x, torch.rand(1, tokens, 3)))
    assert found > attention
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_count_grows_with_the_work() -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 11)
    with counting() as so_far:
        assert so_far() == 0
        product = a @ b
        assert so_far() == 5 * 7 * 11
        _ = a @ b
        assert so_far() == 2 * 5 * 7 * 11
    assert torch.equal(product, a @ b)
