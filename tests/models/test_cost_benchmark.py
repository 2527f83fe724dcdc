"""What benchmarks/cost.py counts: torch's counter is blind to operations that it does not know."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from anomaly3d.models.mamba3dad.discriminator import Discriminator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("grad", [False, True])
def test_fused_layers_are_counted(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    counted = runpy.run_path(str(BENCHMARKS / "cost.py"))["counted"]
    tokens, width, hidden = 64, 32, 48
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width  # four projections, Q K^T and its product with V
    x = torch.randn(1, tokens, width)
    with torch.set_grad_enabled(grad):
        layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True).eval()
        assert counted(lambda: layer(x)) == attention + 2 * tokens * width * hidden
        found = counted(lambda: Discriminator(width, 4, 0.0, 16).eval()(x, torch.rand(1, tokens, 3)))
    assert found > attention
    assert torch.backends.mha.get_fastpath_enabled()
