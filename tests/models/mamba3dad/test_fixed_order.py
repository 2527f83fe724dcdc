from __future__ import annotations

import pytest
import torch

from anomaly3d.models.mamba3dad.fixed_order import Fixed, FixedOrder


@pytest.mark.parametrize("kind", ["off", "random", "coordinate"])
def test_every_token_once_with_its_place_and_the_plan_leads_back(kind: Fixed) -> None:
    tokens, centres = torch.randn(2, 3, 5, 4), torch.randn(2, 5, 3).round()
    out = FixedOrder(kind)(tokens, centres)
    flat = tokens.flatten(1, 2)
    for b in range(2):
        for place in range(15):
            (token,) = out.plan[b, :, place].nonzero().flatten().tolist()
            assert torch.equal(out.features[b, place], flat[b, token])
            assert torch.equal(out.coordinates[b, place], centres[b, token % 5])
    assert torch.equal(out.plan.sum(2), torch.ones(2, 15))
    if kind == "off":
        assert torch.equal(out.features, flat)
    if kind == "random":
        assert not torch.equal(out.features, flat)
        assert torch.equal(out.features, FixedOrder(kind)(tokens, centres).features)
    if kind == "coordinate":
        rows = [tuple(place) for place in out.coordinates[0].tolist()]
        assert rows == sorted(rows)
