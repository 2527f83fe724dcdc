from __future__ import annotations

import pytest
import torch

from anomaly3d.models.components.standardise import TokenStandardiser


@pytest.mark.parametrize("batches", [[6], [1, 1, 1, 1, 1, 1], [2, 3, 1]], ids=str)
def test_statistics_do_not_depend_on_the_batches(batches):
    tokens = 3 + 2 * torch.randn(6, 10, 4) * torch.tensor([1.0, 0.1, 5.0, 0.0])
    standardiser = TokenStandardiser(4)
    for part in tokens.split(batches):
        standardiser.observe(part)
    flat = tokens.flatten(0, 1).double()
    torch.testing.assert_close(standardiser.mean.double(), flat.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(standardiser.variance.double(), flat.var(0, correction=0), rtol=1e-4, atol=1e-5)
    out = standardiser(tokens).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-3, rtol=0)


def test_nothing_changes_before_the_first_cloud():
    tokens = torch.randn(2, 5, 4)
    assert torch.equal(TokenStandardiser(4)(tokens), tokens)


def test_seeing_the_same_clouds_again_changes_nothing():
    tokens, standardiser = torch.randn(3, 5, 4), TokenStandardiser(4)
    standardiser.observe(tokens)
    mean, variance = standardiser.mean.clone(), standardiser.variance.clone()
    for _ in range(5):
        standardiser.observe(tokens)
    torch.testing.assert_close(standardiser.mean, mean)
    torch.testing.assert_close(standardiser.variance, variance)
