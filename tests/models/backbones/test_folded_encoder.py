"""The folded mini-PointNet against the module it is made from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anomaly3d.models.backbones.folded_encoder import FoldedEncoder
from anomaly3d.models.backbones.group_encoder import GroupEncoder
from anomaly3d.models.backbones.point_mae import ARCHITECTURES, Size

SIZES: list[Size] = ["base", "point_bert", "small"]


def make_encoder(size: Size = "small") -> GroupEncoder:
    """An encoder whose BatchNorm does something: other means, variances, scales (negative ones too) and offsets."""
    encoder = GroupEncoder(ARCHITECTURES[size].point_widths).eval()
    for norm in encoder.modules():
        if isinstance(norm, nn.BatchNorm1d):
            width = norm.num_features
            norm.load_state_dict(
                {
                    "weight": 2 * torch.randn(width),
                    "bias": torch.randn(width),
                    "running_mean": 3 * torch.randn(width),
                    "running_var": torch.empty(width).uniform_(-3, 3).exp(),
                    "num_batches_tracked": torch.tensor(7),
                }
            )
    return encoder.requires_grad_(False)


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_the_module_s(size: Size) -> None:
    encoder, points = make_encoder(size), torch.randn(9, 40, 3)
    assert relative_error(FoldedEncoder.fold(encoder).tokens(points), encoder(points)) < 2e-6


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_the_module_s_to_rounding_in_float64(size: Size) -> None:
    encoder, points = make_encoder(size).double(), torch.randn(9, 40, 3).double()
    tokens = FoldedEncoder.fold(encoder).tokens(points)
    assert tokens.dtype == torch.float64
    torch.testing.assert_close(tokens, encoder(points), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_nested_patches_are_the_module_s_on_prefixes(size: Size) -> None:
    encoder, points = make_encoder(size), torch.randn(9, 40, 3)
    nested = FoldedEncoder.fold(encoder).nested(points, [8, 16, 32])
    assert len(nested) == 3
    for tokens, n in zip(nested, [8, 16, 32], strict=True):
        assert relative_error(tokens, encoder(points[:, :n])) < 2e-6


def test_chunks_change_nothing() -> None:
    folded, points = FoldedEncoder.fold(make_encoder()), torch.randn(9, 32, 3)
    whole = folded.nested(points, [8, 32])
    two_patches = 2 * 32 * len(folded.points) * 4
    for chunk_bytes in (1, two_patches):  # one patch at least; two, and one left over
        for got, expected in zip(folded.nested(points, [8, 32], chunk_bytes), whole, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_is_close_and_returns_the_type_of_the_points(size: Size) -> None:
    encoder, points = make_encoder(size), torch.randn(64, 32, 3)
    for tokens, n in zip(FoldedEncoder.fold(encoder, torch.bfloat16).nested(points, [8, 32]), [8, 32], strict=True):
        assert tokens.dtype == torch.float32
        assert relative_error(tokens, encoder(points[:, :n])) < 2e-2


def test_repeated_points_change_nothing() -> None:
    folded, points = FoldedEncoder.fold(make_encoder()), torch.randn(9, 10, 3)
    padded = torch.cat([points, points[:, :1].expand(-1, 22, -1)], dim=1)
    expected = folded.tokens(points)
    for tokens in folded.nested(padded, [10, 16, 32]):
        torch.testing.assert_close(tokens, expected)


@pytest.mark.parametrize("sizes", [[], [0, 4], [4, 11]], ids=str)
def test_sizes_that_no_patch_has_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="of patches of 10 points"):
        FoldedEncoder.fold(make_encoder()).nested(torch.randn(2, 10, 3), sizes)
