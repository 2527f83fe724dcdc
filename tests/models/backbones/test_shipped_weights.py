"""The weights that come with the package are the ones its model card describes, and they are the default."""

from __future__ import annotations

import hashlib

import torch

from anomaly3d.models.backbones.weights import SHIPPED, frozen_point_mae, weights_hash
from anomaly3d.models.mamba3dad.mamba3dad import Mamba3dAD
from anomaly3d.models.sedir.sedir import SeDiR


def test_file_and_card_agree() -> None:
    file = SHIPPED["small"]
    card = file.with_suffix(".md").read_text()
    assert file.stat().st_size < 8e6
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert weights_hash(frozen_point_mae()) in card


def test_they_are_every_detector_s_default() -> None:
    expected = weights_hash(frozen_point_mae())
    for detector in (SeDiR(), Mamba3dAD()):
        assert weights_hash(detector.backbone) == expected


def test_their_tokens_tell_bent_patches_from_flat_ones() -> None:
    plane = torch.rand(1, 50, 64, 2) * 0.2 - 0.1
    bend = torch.linspace(-8, 8, 50)[None, :, None]
    points = torch.cat([plane, (bend * plane[..., 0] ** 2)[..., None]], dim=-1)
    model = frozen_point_mae()
    tokens = model.embed(points / model.unit(points))[0]
    near = torch.cdist(tokens, tokens).fill_diagonal_(torch.inf).argmin(1)
    assert (bend[0, near, 0] - bend[0, :, 0]).abs().median() < 2
