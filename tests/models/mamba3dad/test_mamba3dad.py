from __future__ import annotations

import copy
import math
from typing import Any
from unittest import mock

import pytest
import torch

from anomaly3d.errors import InputError
from anomaly3d.models.components.patches import PatchSampler
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mamba3dad.mamba3dad import spread_blocks
from anomaly3d.types import PointCloudBatch

SMALL: dict[str, Any] = {
    "backbone_size": "tiny",
    "backbone_weights": "random",
    "num_groups": 16,
    "group_size": 16,
    "voxel_size": None,
    "slots": 32,
    "state": 32,
}


def clouds(*sizes: int) -> PointCloudBatch:
    shapes = [torch.randn(n, 3) * torch.tensor([1.0, 0.7, 0.4]) for n in sizes]
    return PointCloudBatch.pack([s / s.norm(dim=1, keepdim=True) for s in shapes], [f"c/test/{n}" for n in sizes])


def detector(**settings: Any) -> Mamba3dAD:
    return Mamba3dAD(**SMALL | settings)


def test_blocks_are_those_of_the_paper_and_all_of_a_small_backbone() -> None:
    assert spread_blocks(12) == (2, 4, 6, 8, 10, 12)
    assert spread_blocks(6) == (1, 2, 3, 4, 5, 6)
    assert spread_blocks(4) == (1, 2, 3, 4)


def test_the_loss_is_the_weighted_sum_and_reaches_every_trainable_parameter() -> None:
    model = detector(entropy_weight=0.3, locality_weight=0.7)
    terms = model.loss(clouds(200, 300))
    expected = terms["bce"] + 0.3 * terms["entropy"] + 0.7 * terms["locality"]
    torch.testing.assert_close(terms["loss"], expected)
    assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
    assert terms["gamma"].item() == pytest.approx(model.generator.gamma.item())
    terms["loss"].backward()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # A bias shared by all keys cancels in the attention's softmax.
            assert parameter.grad.any(), name


def test_positive_weight_balances_the_two_labels() -> None:
    """At logit zero the weighted BCE is ln 2 (1 - p + p (1 - p) / p) = 2 (1 - p) ln 2 on average."""
    model = detector(slots=4096, noise_probability=0.1)
    torch.nn.init.zeros_(model.discriminator.head[3].weight)  # pyright: ignore[reportArgumentType]
    torch.nn.init.zeros_(model.discriminator.head[3].bias)  # pyright: ignore[reportArgumentType]
    assert model.loss(clouds(200))["bce"].item() == pytest.approx(1.8 * 0.6931, rel=0.1)


@pytest.mark.parametrize("label_mode", ["slot", "patch"])
def test_labels_and_the_weighted_bce_equal_loops_and_so_does_its_gradient(label_mode: str) -> None:
    model = detector(label_mode=label_mode, noise_probability=0.2)
    seen: dict[str, Any] = {}
    model.gsas.register_forward_hook(lambda _, inputs, out: seen.update(ordered=out))
    model.generator.register_forward_hook(lambda _, inputs, out: seen.update(shares=inputs[1], labels=out.labels))
    model.discriminator.register_forward_hook(lambda _, inputs, out: (out.retain_grad(), seen.update(logits=out))[0])
    bce = model.loss(clouds(200, 300))["bce"]
    bce.backward()
    labels, logits = seen["labels"].tolist(), seen["logits"].tolist()
    if label_mode == "patch":  # what all of a patch's tokens give to a slot; a slot is made of all patches together
        assignment = seen["ordered"].assignment.detach()
        layers = assignment.shape[1] // 16
        for b, m, s in [(0, 0, 0), (1, 7, 31), (1, 15, 12)]:
            share = sum(assignment[b, layer * 16 + m, s].item() for layer in range(layers))
            assert seen["shares"][b, m, s].item() == pytest.approx(share, rel=1e-5)
        torch.testing.assert_close(seen["shares"].sum(dim=1), torch.ones(2, 32), atol=1e-4, rtol=0)
        assert any(0 < label < 1 for row in labels for label in row)
    else:
        assert {label for row in labels for label in row} == {0.0, 1.0}
    weight, total = 0.8 / 0.2, 0.0
    for b in range(2):
        for s in range(32):
            y, p = labels[b][s], 1 / (1 + math.exp(-logits[b][s]))
            total -= (weight * y * math.log(p) + (1 - y) * math.log(1 - p)) / 64
            slope = (-weight * y * (1 - p) + (1 - y) * p) / 64
            assert seen["logits"].grad[b, s].item() == pytest.approx(slope, rel=1e-3, abs=1e-7)
    assert bce.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("corruption", ["tokens", "points", "both"])
def test_labels_of_defects_in_tokens_and_points_equal_loops_and_so_does_the_gradient(corruption: str) -> None:
    torch.manual_seed(3)
    model = detector(corruption=corruption, noise_probability=0.2, blocks=(1, 2), defect_radius=(0.5, 0.8))
    seen: dict[str, Any] = {}
    model.gsas.register_forward_hook(lambda _, inputs, out: seen.update(ordered=out))
    model.token_noise.register_forward_hook(lambda _, inputs, out: seen.update(shares=out[1]))
    model.generator.register_forward_hook(lambda _, inputs, out: seen.update(labels=out.labels))
    model.discriminator.register_forward_hook(lambda _, inputs, out: (out.retain_grad(), seen.update(logits=out))[0])
    view = model._view

    def remembered(*args: Any) -> Any:
        made = view(*args)
        if corruption != "tokens":
            seen.setdefault("of_points", []).append(made.defective)
        return made

    with mock.patch.object(model, "_view", remembered):
        bce = model.loss(clouds(200, 300))["bce"]
    bce.backward()
    shares = torch.cat(seen["of_points"]) if corruption != "tokens" else seen["shares"]
    assert 0 < shares.mean() < 1
    assignment, logits = seen["ordered"].assignment.detach(), seen["logits"]
    labels = torch.zeros(2, 32)
    for b in range(2):
        for s in range(32):
            for t in range(32):  # two layers of 16 patches
                labels[b, s] += assignment[b, t, s] * min(1.0, 2 * shares[b, t % 16].item())
    labels = labels.clamp(0, 1)
    if corruption == "both":
        labels = torch.maximum(labels, seen["labels"])
    positive = max(labels.mean().item(), 0.01)
    weight, total = (1 - positive) / positive, 0.0
    for b in range(2):
        for s in range(32):
            y, p = labels[b, s].item(), 1 / (1 + math.exp(-logits[b, s].item()))
            total -= (weight * y * math.log(p) + (1 - y) * math.log(1 - p)) / 64
            slope = (-weight * y * (1 - p) + (1 - y) * p) / 64
            assert logits.grad[b, s].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)
    assert bce.item() == pytest.approx(total, rel=1e-4)


def test_holes_leave_a_point_for_every_patch() -> None:
    model = detector(
        corruption="points", num_groups=120, dropout_points=0.2, defect_holes=1.0, defect_radius=(0.5, 0.9), blocks=(1,)
    )
    for seed in range(20):
        torch.manual_seed(seed)
        assert model.loss(clouds(150))["loss"].isfinite()


@pytest.mark.parametrize(
    "settings",
    [
        {"label_mode": "patches"},
        {"assignment": "sink"},
        {"ordering": "sorted"},
        {"deployment": "hard"},
        {"order": "rand"},
        {"corruption": "noise"},
        {"affinity": "cos"},
        {"state_norm": "read"},
        {"transition": "diagonal"},
        {"sinkhorn_method": "exact"},
    ],
)
def test_misspelt_settings_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"{name}={value!r}: choose from"):
        detector(**settings)


def test_thresholds_belong_to_the_sharp_plan_too() -> None:
    one, other = (detector(deployment="argmax", argmax_tau=tau).scoring_settings() for tau in (0.005, None))
    assert {name for name in one if one[name] != other[name]} == {"argmax_tau"}


def test_training_leaves_the_backbone_alone_bit_for_bit() -> None:
    model = detector().train()
    before = copy.deepcopy(model.backbone.state_dict())
    free = [p.detach().clone() for p in model.gsas.parameters()]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model.loss(clouds(150, 150))["loss"].backward()
        optimiser.step()
    assert not any(m.training for m in model.backbone.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert not any(torch.equal(a, b) for a, b in zip(free, model.gsas.parameters(), strict=True))


def test_a_backbone_that_is_trained_gets_gradients_where_tokens_pass() -> None:
    model = detector(train_backbone=True, blocks=(1, 2))
    frozen = detector(blocks=(1, 2))
    frozen.load_state_dict(model.state_dict())
    torch.testing.assert_close(frozen.eval().score(b := clouds(200)).point_scores, model.eval().score(b).point_scores)
    model.train().loss(clouds(200, 250))["loss"].backward()
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    assert "encoder.first_conv.0.weight" in trained
    assert not any(n.startswith("blocks.blocks.2") for n in trained)
    assert detector(train_backbone=True, corruption="points").standardise is False
    for settings in ({"views": 3}, {"corruption": "tokens"}, {"standardise": True}):
        with pytest.raises(InputError, match="train_backbone"):
            detector(train_backbone=True, **settings)


def test_score_is_deterministic_finite_and_covers_every_point() -> None:
    model, batch = detector().eval(), clouds(200, 350)
    first, second = model.score(batch), model.score(batch)
    assert first.point_scores.shape == (550,)
    assert first.object_scores.shape == (2,)
    assert first.point_scores.isfinite().all()
    assert torch.equal(first.point_scores, second.point_scores)
    assert torch.equal(first.object_scores, second.object_scores)
    assert first.point_scores.unique().numel() > 8
    # Tokens average the slots, so no point outdoes the object.
    assert (first.point_scores[:200].max() <= first.object_scores[0] + 1e-5).item()


@pytest.mark.parametrize("voxel_size", [None, 0.1])
def test_score_follows_a_permutation_of_the_points(voxel_size: float | None) -> None:
    model, batch = detector(voxel_size=voxel_size, median_voxels=voxel_size and 3).eval(), clouds(400)
    order = torch.randperm(400)
    a, b = model.score(batch), model.score(PointCloudBatch.pack([batch.xyz[order]], batch.sample_id))
    assert torch.equal(a.object_scores, b.object_scores)
    assert torch.equal(a.point_scores[order], b.point_scores)


def test_a_batch_scores_as_its_clouds_do_alone() -> None:
    model, batch = detector().eval(), clouds(200, 300, 250)
    together = model.score(batch)
    for b, cloud in enumerate(batch.clouds()):
        alone = model.score(PointCloudBatch.pack([cloud], ["alone"]))
        torch.testing.assert_close(alone.object_scores[0], together.object_scores[b])
        torch.testing.assert_close(alone.point_scores, batch.split(together.point_scores)[b])


def test_units_of_the_file_do_not_matter() -> None:
    batch = clouds(300)
    moved = PointCloudBatch.pack([batch.xyz * 1000 + 50], batch.sample_id)
    a = detector(voxel_size=0.1).eval()
    b = detector(voxel_size=100.0).eval()
    b.load_state_dict(a.state_dict())
    torch.testing.assert_close(a.score(batch).point_scores, b.score(moved).point_scores, atol=1e-3, rtol=1e-3)


def test_points_of_one_voxel_share_their_score() -> None:
    twins = clouds(200).xyz.repeat_interleave(2, dim=0)
    scores = detector(voxel_size=0.01).eval().score(PointCloudBatch.pack([twins], ["twins"])).point_scores
    assert scores.shape == (400,)
    assert torch.equal(scores[::2], scores[1::2])


def test_a_cloud_smaller_than_a_patch_is_a_patch() -> None:
    model = detector(group_size=512).eval()
    model.loss(clouds(100))["loss"].backward()
    assert model.score(clouds(100)).point_scores.isfinite().all()
    with pytest.raises(InputError, match="c/test/10"):
        model.score(clouds(10))


def test_median_filter_smooths_and_needs_voxels() -> None:
    plain, batch = detector(voxel_size=0.05).eval(), clouds(600)
    smooth = detector(voxel_size=0.05, median_voxels=3).eval()
    smooth.load_state_dict(plain.state_dict())
    before, after = plain.score(batch), smooth.score(batch)
    assert torch.equal(before.object_scores, after.object_scores)
    assert not torch.equal(before.point_scores, after.point_scores)
    assert after.point_scores.std() < before.point_scores.std()
    with pytest.raises(InputError, match="voxel_size"):
        detector(median_voxels=3)


def test_training_draws_augmentation_and_scoring_does_not() -> None:
    """Without noise, dropout and augmentation the loss repeats; with augmentation it does not."""
    still: dict[str, Any] = {"yaw": False, "jitter": 0.0, "scale": 0.0, "dropout_points": 0.0, "translation": 0.0}
    batch = clouds(300)
    for settings, repeats in ((still, True), ({}, False)):
        model = detector(**settings)
        first, second = (model.loss(batch)["entropy"].item() for _ in range(2))
        assert (first == second) is repeats


def test_numbered_views_are_encoded_once_and_change_no_loss() -> None:
    """Three views of two clouds: six encodings, and bit for bit the losses of a detector that keeps none."""
    batch, losses, encodings = clouds(200, 300), {}, {}
    for keep in (2.0, 0.0):
        torch.manual_seed(0)
        model = detector(corruption="points", views=3, frozen_cache_gb=keep)
        calls = []
        model.backbone.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        losses[keep] = [model.loss(batch)["loss"].item() for _ in range(12)]
        encodings[keep] = len(calls)
    assert losses[2.0] == losses[0.0]
    assert encodings == {2.0: 6, 0.0: 24}
    assert len(set(losses[2.0])) > 3


def test_noise_on_tokens_teaches_without_altering_a_cloud() -> None:
    """No cloud is altered, the loss reaches every trained parameter, and scoring adds no noise."""
    still: dict[str, Any] = {"yaw": False, "jitter": 0.0, "scale": 0.0, "dropout_points": 0.0, "translation": 0.0}
    model = detector(corruption="tokens", noise_probability=0.3, views=1, **still)
    view = model._view(clouds(200).xyz, "c/train/0", None)
    assert not view.defective.any()
    terms = model.loss(clouds(200, 300))
    terms["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    batch = clouds(200)
    assert torch.equal(model.eval().score(batch).point_scores, model.score(batch).point_scores)


@pytest.mark.parametrize(
    "settings",
    [
        {"ordering": "sort"},
        {"deployment": "argmax"},
        {"deployment": "sort"},
        {"order": "off"},
        {"order": "random"},
        {"order": "coordinate"},
        {"assignment": "hungarian"},
        {"assignment": "softmax"},
        {"block_tokens": 20},
        {"label_mode": "patch"},
    ],
    ids=str,
)
def test_every_way_to_sort_trains_and_scores_whatever_the_order_of_the_points(settings: dict[str, Any]) -> None:
    model, batch = detector(**settings), clouds(400)
    model.loss(batch)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    order = torch.randperm(400)
    a, b = model.eval().score(batch), model.score(PointCloudBatch.pack([batch.xyz[order]], batch.sample_id))
    assert torch.equal(a.object_scores, b.object_scores)
    assert torch.equal(a.point_scores[order], b.point_scores)


def test_smoothing_takes_the_object_score_from_the_smoothed_patches() -> None:
    plain, smooth, batch = detector().eval(), detector(smooth_sigma=1.0).eval(), clouds(300)
    smooth.load_state_dict(plain.state_dict())
    before, after = plain.score(batch), smooth.score(batch)
    assert after.object_scores.item() == pytest.approx(after.point_scores.max().item())
    assert after.point_scores.std() < before.point_scores.std()


def test_the_gate_starts_where_it_is_told() -> None:
    torch.manual_seed(0)
    closed = detector(gate_bias=-20.0)
    tokens = torch.randn(1, 32, closed.backbone.width)
    torch.testing.assert_close(closed.adapter(tokens), tokens, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(detector().adapter(tokens), tokens, atol=0.1)


@pytest.mark.parametrize("voxel_size", [None, 0.1])
def test_clouds_are_framed_once_and_altered_at_every_step(
    voxel_size: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, batch, losses, framed = PatchSampler.frame, clouds(200, 300), {}, []
    monkeypatch.setattr(PatchSampler, "frame", lambda self, *args: framed.append(1) or frame(self, *args))
    for keep in (2.0, 0.0):
        framed.clear()
        torch.manual_seed(0)
        model = detector(frozen_cache_gb=keep, voxel_size=voxel_size)
        losses[keep] = [model.loss(batch)["loss"].item() for _ in range(4)]
        assert len(framed) == (2 if keep else 8)
    assert losses[2.0] == losses[0.0]
    assert len(set(losses[2.0])) == 4


def test_numbered_views_follow_the_seed_and_a_checkpoint_keeps_them() -> None:
    def first_tokens(seed: int, state: dict[str, Any] | None = None) -> torch.Tensor:
        torch.manual_seed(seed)
        model = detector(corruption="points", views=1)
        if state is not None:
            model.load_state_dict(state)
        states.append(model.state_dict())
        return model._view(cloud.xyz, "c/train/0", None).tokens

    states: list[dict[str, Any]] = []
    cloud = clouds(200)
    tokens = first_tokens(1)
    backbone = {k: v for k, v in states[0].items() if k.startswith("backbone.")}
    assert torch.equal(tokens, first_tokens(2, states[0]))
    assert not torch.equal(tokens, first_tokens(2, states[1] | backbone | {"views_seed": torch.tensor(3)}))
    with pytest.raises(InputError, match="views=0"):
        detector(views=0)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_only_strict_ignores_the_order_of_the_file(protocol: str) -> None:
    torch.manual_seed(0)
    model = detector(protocol=protocol).eval()
    assert model.protocol == protocol
    (cloud,) = clouds(400).clouds()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    one, two = (model.score(PointCloudBatch.pack([x], ["a"])).point_scores for x in (cloud, cloud[order]))
    assert torch.equal(one[order], two) is (protocol == "strict")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "literal"}, "protocol='literal'"),
        ({"noise_sigma": -1.0}, "noise_sigma=-1.0"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"gamma_range": (3.0, 2.0)}, "gamma_range"),
        ({"gamma_range": (-1.0, 2.0)}, "gamma_range"),
        ({"gamma_range": (0.0, 0.0)}, "gamma_range"),
        ({"token_noise": (0.0, float("inf"))}, "token_noise"),
        ({"defect_count": -1}, "defect_count=-1"),
        ({"defect_radius": (0.3, 0.2)}, "defect_radius"),
        ({"defect_height": (0.0, 0.2)}, "defect_height"),
        ({"defect_elongation": 0.5}, "defect_elongation=0.5"),
        ({"defect_holes": 1.5}, "defect_holes=1.5"),
    ],
)
def test_noise_that_teaches_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector(**settings)


def test_settings_of_the_points_defects_and_of_the_head_reach_them() -> None:
    sizes: dict[str, Any] = {"radius": (0.2, 0.2), "height": (0.5, 0.5), "elongation": 2.0, "holes": 0.0, "count": 3}
    model = detector(corruption="points", head_norm=False, **{f"defect_{name}": size for name, size in sizes.items()})
    assert {name: getattr(model.point_defects, name) for name in sizes} == sizes
    wide = detector(head_norm=True)
    norm = {name for name in wide.state_dict() if name not in model.state_dict()}
    assert norm == {"discriminator.head.0.weight", "discriminator.head.0.bias"}


@pytest.mark.parametrize(("transition", "state_norm"), [("dense", "readout"), ("rotation", "recurrent")])
def test_other_forms_of_the_adapter_train_and_score(transition: str, state_norm: str) -> None:
    model = detector(transition=transition, state_norm=state_norm)
    model.loss(clouds(200))["loss"].backward()
    assert model.eval().score(clouds(200)).point_scores.isfinite().all()


def test_bfloat16_autocast_stays_near_float32() -> None:
    model, batch = detector().eval(), clouds(300, 300)
    expected = model.score(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model.score(batch)
        model.loss(batch)["loss"].backward()
    assert out.point_scores.dtype == torch.float32
    torch.testing.assert_close(out.point_scores, expected.point_scores, atol=0.05, rtol=0.1)


@pytest.mark.slow
def test_the_discriminator_learns_from_the_defaults_of_the_generator() -> None:
    """BCE at chance is 2 (1 - p) ln 2 = 1.317; after some hundred steps it is far below, on clouds it did not see."""
    model = Mamba3dAD(
        backbone_size="tiny", backbone_weights="random", num_groups=64, group_size=32, voxel_size=None, slots=128
    )
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-2)
    chance = 1.317
    for _ in range(220):
        optimiser.zero_grad()
        model.loss(clouds(600, 700))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    after = torch.stack([model.loss(clouds(600, 700))["bce"].detach() for _ in range(10)]).mean()
    assert after < 0.7 * chance
