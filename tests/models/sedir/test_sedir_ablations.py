"""Every row of the grid of SeDiR's ablations changes what it is named after, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from anomaly3d.models.sedir import SeDiR
from anomaly3d.models.sedir.sedir import FrozenView
from anomaly3d.types import PointCloudBatch
from dents import ball

ROOT = Path(__file__).parents[3]
GRID = yaml.safe_load((ROOT / "configs" / "benchmark" / "sedir_ablations.yaml").read_text())["methods"]
PREFIX = "model.detector.init_args."

WHOLE: dict[str, Any] = {
    # What is trained beside the encoder, the position embedding and the decoder.
    "trained": {"embed", "contrast", "context", "guidance"},
    "terms": {"contrastive": 0.001, "cosine": 0.001, "class": 0.01},
    "feature": 4,  # widths
    "geometry": "bias",
    "feed_forward": 2,  # widths
    "neighbourhoods": (64, 128, 256),
    "groups": 256,
    "buffer": 64,
    "eviction": "fifo",
}
ALONE = {"trained": {"guidance"}, "terms": {}, "feature": None}
PLAIN = {"geometry": "none", "feed_forward": 1}
MEAN = {"trained": {"embed", "contrast", "guidance"}, "terms": {"contrastive": 0.001, "class": 0.01}, "feature": 1}


def without(*parts: str) -> dict[str, Any]:
    return {"trained": WHOLE["trained"] - {*parts}}


def terms(**weights: float) -> dict[str, Any]:
    return {"terms": weights, **({} if "class" in weights else without("contrast"))}


CHANGES: dict[str, dict[str, Any]] = {
    "SeDiR": {},
    "4 none": {**ALONE, **PLAIN, "trained": set()},
    "4 CFGT": {**terms(), **PLAIN, **without("contrast", "guidance")},
    "4 C3L": {**MEAN, **PLAIN, "trained": {"embed", "contrast"}},
    "4 GGD": ALONE,
    "4 CFGT C3L": {**PLAIN, **without("guidance")},
    "4 CFGT GGD": terms(),
    "4 C3L GGD": MEAN,
    "5 no contrastive": terms(**{"cosine": 0.001, "class": 0.01}),
    "5 no cosine": terms(**{"contrastive": 0.001, "class": 0.01}),
    "5 no class": terms(contrastive=0.001, cosine=0.001),
    "5 contrastive": terms(contrastive=0.001),
    "5 cosine": terms(cosine=0.001),
    "5 class": terms(**{"class": 0.01}),
    "6 masking": {"geometry": "masking", **without("guidance")},
    "6 gating": {"geometry": "gating"},
    "7 act": {"feature": 1},
    "7 max": {"feature": 1, **without("context")},
    "7 mean": {"feature": 1, **without("context")},
    "S3 ratio 4": {"neighbourhoods": (32, 128, 512)},
    "S3 ratio 3": {"neighbourhoods": (43, 128, 384)},
    "S3 ratio 1.5": {"neighbourhoods": (85, 128, 192)},
    "S4 k half": {"neighbourhoods": (32, 64, 128)},
    "S4 k double": {"neighbourhoods": (128, 256, 512)},
    "S5 g half": {"groups": 128},
    "S5 g double": {"groups": 512},
    "S6 buffer 32": {"buffer": 32},
    "S6 buffer 128": {"buffer": 128},
    "S6 buffer 10000": {"buffer": 10000},
    "S6 balanced": {"eviction": "balanced"},
    "S7 contrastive x10": terms(**{"contrastive": 0.01, "cosine": 0.001, "class": 0.01}),
    "S7 cosine x10": terms(**{"contrastive": 0.001, "cosine": 0.01, "class": 0.01}),
    "S7 class x10": terms(**{"contrastive": 0.001, "cosine": 0.001, "class": 0.1}),
}


def built(row: str) -> SeDiR:
    """The row's detector; a name that SeDiR does not know is a TypeError."""
    recipe = yaml.safe_load((ROOT / GRID[row]["config"]).read_text())["model"]["detector"]["init_args"]
    overrides = GRID[row].get("overrides", {})
    assert all(name.startswith(PREFIX) for name in overrides)
    detector = SeDiR(**recipe | {name.removeprefix(PREFIX): value for name, value in overrides.items()})
    detector.configure(["ball", "box"])
    return detector


def facts(detector: SeDiR) -> dict[str, Any]:
    """What of a detector the ablations are about, as far as it can be found by running it."""
    draw = (torch.randn(2, 5, size) for size in (*3 * [detector.backbone.width], 3, 2))
    fine, base, coarse, centres, geometry = draw
    view = FrozenView(fine, base, coarse, centres, geometry)
    detector.train()
    for _ in range(2):  # the first fills the buffer
        found = detector.loss_of(view, torch.tensor([0, 1]))
    logged = {name: term for name, term in found.items() if name not in ("loss", "reconstruction", "c3l")}
    found["loss"].backward()
    learning = [name for name, parameter in detector.named_parameters() if parameter.grad is not None]
    parts = {name.replace("tokenizer.context", "context").split(".")[0] for name in learning}
    weights = {name: detector.contrast.weights[name] for name in logged}
    total = sum(weight * logged[name].item() for name, weight in weights.items())
    assert found["c3l"].item() == pytest.approx(total, rel=1e-4)  # these are the terms and weights of the sum
    feature = detector.reconstruct(detector.standardised(view)).feature
    return {
        "trained": parts - {"position", "tokenizer", "decoder"},
        "terms": weights,
        "feature": None if feature is None else feature.shape[1] // 128,
        "geometry": detector.guidance.injection,
        "feed_forward": next(iter(detector.decoder.layers)).feed_forward[0].in_features // 128,  # pyright: ignore
        **patches_of(detector),
        "buffer": len(detector.contrast.buffer.embedding),
        "eviction": detector.contrast.buffer.eviction,
    }


def patches_of(detector: SeDiR) -> dict[str, Any]:
    """What the backbone is given of a cloud."""
    seen: list[Any] = []

    def nested(points: torch.Tensor, centres: torch.Tensor, sizes: tuple[int, ...], blocks: object) -> list[Any]:
        seen.append((tuple(points.shape), sizes))
        return 3 * [[torch.zeros(1, centres.shape[1], detector.backbone.width)]]

    batch = PointCloudBatch.pack([ball(2000, 0)], ["a"])
    with mock.patch.object(detector.backbone, "nested", nested):
        view = detector.view(detector.patches(batch))
    (((_, groups, largest, _), sizes),) = seen
    assert largest == sizes[-1]
    assert view.geometry.shape[1] == groups
    return {"neighbourhoods": sizes, "groups": groups}


def test_no_row_is_left_out() -> None:
    assert list(CHANGES) == list(GRID)


@pytest.mark.parametrize("row", CHANGES)
def test_a_row_changes_what_it_is_named_after(row: str) -> None:
    assert facts(built(row)) == WHOLE | CHANGES[row]


@pytest.mark.parametrize("row", ["7 act", "7 max", "7 mean"])
def test_the_global_feature_is_the_row_s(row: str) -> None:
    detector = built(row).eval()
    view = FrozenView(*(torch.randn(2, 6, size) for size in (*3 * [detector.backbone.width], 3, 2)))
    encoded, feature, *_ = detector.reconstruct(view)
    expected = {"7 act": encoded.act, "7 max": encoded.base.amax(1), "7 mean": encoded.base.mean(1)}[row]
    assert feature is not None
    assert expected is not None
    assert torch.equal(feature, expected)


@pytest.mark.parametrize("row", ["6 masking", "6 gating", "4 CFGT C3L"])
def test_a_row_rebuilds_otherwise_with_the_weights_of_the_whole(row: str) -> None:
    whole, other = built("SeDiR").eval(), built(row).eval()
    same = {k: v for k, v in whole.state_dict().items() if k in (own := other.state_dict()) and own[k].shape == v.shape}
    other.load_state_dict(same, strict=False)
    width = whole.backbone.width
    view = FrozenView(*(torch.randn(1, 6, size) for size in (width, width, width, 3, 2)))
    assert (whole.reconstruct(view).tokens - other.reconstruct(view).tokens).abs().max() > 1e-4
