from __future__ import annotations

from typing import Any

import pytest
import torch

from anomaly3d.models.mamba3dad.augment import Augmentation

STILL: dict[str, Any] = {"yaw": False, "jitter": 0.0, "scale": 0.0, "dropout": 0.0, "translation": 0.0}


def only(**settings: Any) -> Augmentation:
    return Augmentation(**{**STILL, **settings})


def cloud(n: int = 500) -> torch.Tensor:
    points = torch.randn(n, 3)
    return points / points.norm(dim=1).max()


def test_nothing_switched_on_changes_nothing() -> None:
    x = cloud()
    assert torch.equal(only()(x), x)


@pytest.mark.parametrize(("axis", "column"), [("x", 0), ("y", 1), ("z", 2)])
def test_yaw_is_a_rotation_about_its_axis(axis: str, column: int) -> None:
    x = cloud()
    augment = only(yaw=True, yaw_axis=axis)
    angles = []
    for _ in range(200):
        y = augment(x)
        torch.testing.assert_close(y[:, column], x[:, column])
        torch.testing.assert_close(torch.cdist(y[:20], y[:20]), torch.cdist(x[:20], x[:20]), atol=1e-3, rtol=0)
        first, second = (column + 1) % 3, (column + 2) % 3
        # The same handedness for every axis, and angles over the whole circle.
        turned = torch.complex(y[0, first], y[0, second]) / torch.complex(x[0, first], x[0, second])
        torch.testing.assert_close(turned.abs(), torch.tensor(1.0))
        angles.append(turned.angle().item())
    counts = torch.histc(torch.tensor(angles), 4, -torch.pi, torch.pi)
    assert counts.min() > 25


def test_jitter_is_clipped_gaussian() -> None:
    moved = only(jitter=0.005)(x := cloud(20_000)) - x
    assert moved.abs().max() <= 0.01 + 1e-6
    assert moved.std() == pytest.approx(0.005 * 0.9594, rel=0.02)  # a normal clipped at 2 sigma has 0.9594 sigma


def test_scale_dropout_and_translation_stay_in_range_and_vary() -> None:
    x = cloud(1000)
    factors, sizes, shifts = [], [], []
    for _ in range(100):
        factors.append((only(scale=0.05)(x).norm() / x.norm()).item())
        kept = only(dropout=0.05)(x)
        sizes.append(len(kept))
        assert {tuple(p) for p in kept.tolist()} <= {tuple(p) for p in x.tolist()}
        shift = only(translation=0.002)(x) - x
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), atol=1e-6, rtol=0)
        shifts.append(shift[0])
    assert 0.95 <= min(factors) < 0.97
    assert 1.03 < max(factors) <= 1.05
    assert 950 <= min(sizes) < 965
    assert 985 < max(sizes) <= 1000
    assert 0.0018 < torch.stack(shifts).abs().max() <= 0.002 + 1e-6


def test_dropout_leaves_the_points_the_patches_need() -> None:
    augment = only(dropout=0.5, min_points=98)
    assert all(len(augment(cloud(100))) >= 98 for _ in range(50))
    assert len(only(dropout=0.5, min_points=200)(cloud(100))) == 100


def test_every_pass_draws_anew_and_a_seed_repeats_it() -> None:
    x, augment = cloud(), Augmentation(dropout=0.0)
    torch.manual_seed(1)
    first, second = augment(x), augment(x)
    torch.manual_seed(1)
    assert torch.equal(augment(x), first)
    assert not torch.equal(first, second)
