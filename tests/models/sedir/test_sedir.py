from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly3d.errors import InputError
from anomaly3d.models.backbones.point_mae import patch_radius
from anomaly3d.models.sedir import SeDiR
from anomaly3d.models.sedir.sedir import neighbourhoods
from anomaly3d.types import PointCloudBatch
from dents import Dents, ball, train

TINY: dict[str, Any] = {
    "num_groups": 32,
    "group_size": 8,
    "width": 32,
    "encoder_depth": 1,
    "decoder_depth": 2,
    "heads": 4,
    "hidden": 64,
    "backbone_size": "tiny",
    "backbone_weights": "random",
    "geometry_radius": 3.0,
}


def make_detector(**settings: Any) -> SeDiR:
    detector = SeDiR(**TINY | settings)
    detector.configure(["ball", "box"])
    return detector


def box(n: int, seed: int) -> Tensor:
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return 3 * x / x.abs().amax(1, keepdim=True)


def make_batch() -> PointCloudBatch:
    return PointCloudBatch.pack([ball(300, 0), box(400, 1)], ["ball/0", "box/0"], category=[0, 1], label=[0, 0])


def test_shapes_order_and_category_logits():
    batch, detector = make_batch(), make_detector().eval()
    prediction = detector.score(batch.without_truth())
    assert prediction.point_scores.shape == (700,)
    assert prediction.category_logits is not None
    assert prediction.category_logits.shape == (2, 2)
    maxima = torch.stack([s.max() for s in batch.split(prediction.point_scores)])
    assert torch.equal(prediction.object_scores, maxima)


def test_scores_need_no_truth_and_no_batch_mates():
    batch, detector = make_batch(), make_detector().eval()
    both = detector.score(batch.without_truth())
    assert torch.equal(both.point_scores, detector.score(batch).point_scores)
    alone = [
        detector.score(PointCloudBatch.pack([cloud], [name])).point_scores
        for cloud, name in zip(batch.clouds(), batch.sample_id, strict=True)
    ]
    torch.testing.assert_close(both.point_scores, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_token_errors_are_distances_to_the_frozen_tokens():
    batch, detector = make_batch(), make_detector(smooth="none", propagate="nearest").eval()
    groups = detector.patches(batch)
    view = detector.view(groups)
    errors = np.linalg.norm((detector.reconstruct(view).tokens - view.base).detach().double().numpy(), axis=-1)
    scores = detector.score(batch)
    for b, (cloud, points) in enumerate(zip(batch.clouds(), batch.split(scores.point_scores), strict=True)):
        nearest = torch.cdist(groups.in_frame(cloud, b), groups.centres[b]).argmin(1).numpy()
        np.testing.assert_allclose(points.numpy(), errors[b, nearest], rtol=1e-4)


def test_view_uses_nested_neighbourhoods_of_shared_centres_after_the_named_blocks():
    batch, detector = make_batch(), make_detector(backbone_blocks=[2, 4])
    assert detector.neighbourhoods == (4, 8, 16)
    groups = detector.patches(batch)
    view = detector.view(groups)
    scale = patch_radius(groups.points)  # that of the coarse neighbourhood, for all three
    for tokens, size in zip((view.fine, view.base, view.coarse), (4, 8, 16), strict=True):
        near = []
        for b in range(2):
            distance = torch.cdist(groups.centres[b], groups.cloud[b])
            index = distance.topk(size, largest=False).indices
            near.append(groups.cloud[b][index] - groups.centres[b][:, None])
        patches = detector.backbone.embed(torch.stack(near) / scale)
        second, fourth = detector.backbone.transform(patches, groups.centres, [2, 4])
        torch.testing.assert_close(tokens, torch.cat([second, fourth], dim=-1), atol=1e-5, rtol=1e-4)


def test_loss_is_reconstruction_plus_weighted_parts():
    detector = make_detector(contrastive_weight=0.3, cosine_weight=0.2, class_weight=0.1).eval()
    batch = make_batch()
    detector.contrast.buffer.push(torch.nn.functional.normalize(torch.randn(4, 32), dim=1), torch.tensor([0, 1, 1, 0]))
    terms = detector.loss(batch)
    view = detector.view(detector.patches(batch))
    difference = (detector.reconstruct(view).tokens - view.base).detach().double().numpy()
    assert terms["reconstruction"].item() == pytest.approx((difference**2).mean(), rel=1e-5)
    total = sum(weight * terms[name] for name, weight in (("contrastive", 0.3), ("cosine", 0.2), ("class", 0.1)))
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + total)
    assert terms["contrastive"] > 0


def test_every_trainable_parameter_learns_and_the_backbone_stays():
    detector = make_detector().train()
    before = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.1)
    detector.loss(make_batch())  # fills the buffer
    detector.loss(make_batch())["loss"].backward()
    # The bias of a key shifts all logits of a query alike, which the softmax cancels.
    still = {n for n, p in detector.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert all(name.endswith("key.bias") for name in still)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in detector.backbone.state_dict().items())


@pytest.mark.parametrize("categories", [[0], [1, 1], [0, 1]], ids=str)
def test_first_steps_have_no_nan(categories):
    detector = make_detector(buffer_size=3)
    clouds = [ball(200, i) for i in range(len(categories))]
    batch = PointCloudBatch.pack(clouds, [str(i) for i in range(len(clouds))], category=categories)
    for _ in range(4):
        detector.zero_grad()
        terms = detector.loss(batch)
        terms["loss"].backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


def test_order_of_points_changes_no_bit_under_strict():
    batch, detector = make_batch(), make_detector().eval()
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in batch.sizes()]
    shuffled = PointCloudBatch.pack([c[o] for c, o in zip(batch.clouds(), order, strict=True)], batch.sample_id)
    one, other = detector.score(batch), detector.score(shuffled)
    assert torch.equal(one.object_scores, other.object_scores)
    expected = torch.cat([s[o] for s, o in zip(batch.split(one.point_scores), order, strict=True)])
    assert torch.equal(expected, other.point_scores)


def test_order_of_points_changes_the_scores_under_paper():
    batch, detector = make_batch(), make_detector(protocol="paper").eval()
    assert (detector.scoring.normalise, detector.scoring.smooth) == ("instance", "token_index")
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in batch.sizes()]
    shuffled = PointCloudBatch.pack([c[o] for c, o in zip(batch.clouds(), order, strict=True)], batch.sample_id)
    one, other = detector.score(batch), detector.score(shuffled)
    expected = torch.cat([s[o] for s, o in zip(batch.split(one.point_scores), order, strict=True)])
    assert (expected - other.point_scores).abs().max() > 0.05


def test_protocol_choices_can_be_overridden():
    detector = make_detector(protocol="paper", smooth="spatial", smooth_kernel=5, smooth_sigma=1.5)
    choices = (detector.scoring.normalise, detector.scoring.smooth, detector.scoring.kernel, detector.scoring.sigma)
    assert choices == ("instance", "spatial", 5, 1.5)
    assert not detector.patches.canonical


@pytest.mark.parametrize("source", ["centres", "cloud"])
def test_geometry_source_and_bias_reach_the_reconstruction(source):
    batch, detector = make_batch(), make_detector(geometry_source=source).eval()
    view = detector.view(detector.patches(batch))
    tokens = detector.reconstruct(view).tokens
    other = detector.reconstruct(view._replace(geometry=view.geometry.flip(1))).tokens
    assert (tokens - other).abs().max() > 1e-5
    with torch.no_grad():
        detector.guidance.beta.zero_()
    flat, same = (detector.reconstruct(v).tokens for v in (view, view._replace(geometry=view.geometry.flip(1))))
    assert torch.equal(flat, same)


def test_geometry_sources_differ():
    groups = make_detector().patches(make_batch())
    views = [make_detector(geometry_source=source).view(groups).geometry for source in ("centres", "cloud")]
    assert (views[0] - views[1]).abs().max() > 0.01


@pytest.mark.parametrize("cloud", ["plane", "line", "repeated"])
def test_degenerate_clouds_train_and_score(cloud):
    xyz = ball(200, 0)
    if cloud == "plane":
        xyz[:, 2] = 0
    elif cloud == "line":
        xyz[:, 1:] = 0
    else:
        xyz = xyz[:40].repeat(5, 1)
    batch = PointCloudBatch.pack([xyz], ["odd"], category=[0])
    detector = make_detector()
    assert detector.loss(batch)["loss"].isfinite()
    prediction = detector.eval().score(batch)
    assert prediction.point_scores.isfinite().all()


def test_too_small_a_cloud_names_itself_unless_padded():
    batch = PointCloudBatch.pack([ball(12, 0)], ["ball/test/tiny"])
    with pytest.raises(InputError, match="ball/test/tiny"):
        make_detector(num_groups=8).score(batch)
    assert make_detector(num_groups=8, pad=True).eval().score(batch).point_scores.isfinite().all()


def test_voxel_filter_still_scores_every_point():
    batch = make_batch()
    prediction = make_detector(num_groups=16, voxel_size=1.0).eval().score(batch)
    assert prediction.point_scores.shape == (700,)


def test_checkpoint_roundtrip_keeps_scores_and_buffer():
    detector, batch = make_detector(), make_batch()
    for _ in range(3):
        detector.loss(batch)
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    restored = make_detector()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(detector.buffers(), restored.buffers(), strict=True))
    assert torch.equal(detector.eval().score(batch).point_scores, restored.eval().score(batch).point_scores)


def test_bfloat16_autocast_trains_and_scores_close_to_float32():
    detector, batch = make_detector(), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = detector.loss(batch)
        half = detector.eval().score(batch)
    terms["loss"].backward()
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    assert half.point_scores.dtype == torch.float32
    torch.testing.assert_close(half.point_scores, detector.score(batch).point_scores, rtol=0.05, atol=0)


def test_jitter_is_on_in_training_only():
    detector = make_detector(dropout=0.0)
    batch = make_batch()
    training = [detector.loss(batch)["reconstruction"] for _ in range(2)]
    assert training[0] != training[1]
    detector.eval()
    assert torch.equal(detector.loss(batch)["reconstruction"], detector.loss(batch)["reconstruction"])


def test_bad_use_is_named():
    with pytest.raises(InputError, match="group_size=1: too few"):
        make_detector(group_size=1)
    with pytest.raises(InputError, match="neighbourhood_ratio=1"):
        make_detector(neighbourhood_ratio=1.0)
    with pytest.raises(InputError, match="nothing to contrast"):
        make_detector(global_token="none")
    with pytest.raises(ValueError, match="categories"):
        make_detector().loss(make_batch().without_truth())
    with pytest.raises(RuntimeError, match="configure"):
        SeDiR(**TINY).loss(make_batch())
    assert SeDiR(**TINY).eval().score(make_batch()).category_logits is None


def test_paper_sizes():
    detector = SeDiR(backbone_size="base", backbone_weights="random")
    detector.configure([str(i) for i in range(40)])
    frozen = sum(p.numel() for p in detector.backbone.parameters())
    trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert detector.neighbourhoods == (128, 256, 512)
    # Table S1: 33.25 M, of them 22.10 M frozen (the published Point-MAE with its ModelNet40 head).
    assert frozen == pytest.approx(21.8e6, rel=0.01)
    assert trainable == pytest.approx(9.06e6, rel=0.01)


@pytest.mark.parametrize(
    ("k", "ratio", "sizes"),
    [(256, 2, (128, 256, 512)), (256, 4, (64, 256, 1024)), (256, 3, (85, 256, 768)), (256, 1.5, (171, 256, 384))],
)
def test_neighbourhoods_of_tables_s3_and_s4(k, ratio, sizes):
    assert neighbourhoods(k, ratio) == sizes


NO_C3L = {"contrastive_weight": 0.0, "cosine_weight": 0.0, "class_weight": 0.0}


@pytest.mark.parametrize(
    "settings",
    [
        NO_C3L,
        {"global_token": "none", **NO_C3L, "geometry": "none"},
        {"global_token": "mean", "cosine_weight": 0.0},
        *({"global_token": kind} for kind in ("act", "mean", "max")),
        *({"geometry": kind} for kind in ("masking", "gating", "none")),
        *({name: 0.0} for name in NO_C3L),
        {"neighbourhood_ratio": 1.5},
    ],
    ids=str,
)
def test_ablations_train_all_they_have_and_differ_from_the_whole(settings):
    batch = make_batch()
    torch.manual_seed(0)
    detector = make_detector(**settings).train()
    detector.loss(batch)
    detector.loss(batch)["loss"].backward()
    # DDP hangs on a parameter without a gradient.
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    # Otherwise than the whole, with the weights that both have, and without noise.
    whole, learned = make_detector().eval(), detector.eval().state_dict()
    of_whole = whole.state_dict()
    shared = {k: v for k, v in learned.items() if k in of_whole and v.shape == of_whole[k].shape}
    whole.load_state_dict(shared, strict=False)
    assert batch.category is not None
    mine, theirs = (one.loss_of(one.view(one.patches(batch)), batch.category) for one in (detector, whole))
    if shared.keys() == learned.keys():  # else nothing is shown: what is not shared is random in the whole
        assert mine.keys() != theirs.keys() or mine["loss"] != theirs["loss"]
    assert detector.eval().score(batch).point_scores.isfinite().all()
    restored = make_detector(**settings)
    restored.load_state_dict(detector.state_dict())
    assert torch.equal(restored.eval().score(batch).point_scores, detector.score(batch).point_scores)


def test_without_a_global_token_the_reconstruction_follows_the_position_alone():
    batch = make_batch()
    detector = make_detector(global_token="none", **NO_C3L, geometry="none").eval()
    found = detector.reconstruct(detector.view(detector.patches(batch)))
    assert (found.z, found.feature, found.encoded.act, found.encoded.fine) == (None, None, None, None)
    assert detector.score(batch).category_logits is None


@pytest.mark.slow
def test_training_finds_a_dent_that_the_untrained_model_does_not():
    detector, dents = make_detector(num_groups=96, group_size=16, smooth_sigma=1.0), Dents(box)
    untrained = dents.p_auroc(detector)
    view = detector.train().view(detector.patches(dents.normal))
    category = dents.normal.category
    assert category is not None
    train(detector, lambda: detector.loss_of(view, category)["loss"])
    trained = dents.p_auroc(detector)
    assert trained > max(0.8, untrained + 0.1), (untrained, trained)


def test_standardise_is_learnt_in_training_and_off_under_paper():
    batch = make_batch()
    detector = make_detector(dropout=0.0, jitter_scale=0.0)
    detector.loss(batch)
    assert detector.standardiser.clouds == 2
    detector.eval().loss(batch)
    assert detector.standardiser.clouds == 2
    view = detector.view(detector.patches(batch))
    base = view.base.flatten(0, 1)
    expected = (view.base - base.mean(0)) / (base.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(detector.standardised(view).base, expected, rtol=1e-3, atol=1e-3)
    difference = detector.reconstruct(detector.standardised(view)).tokens - expected
    torch.testing.assert_close(detector.loss(batch)["reconstruction"], difference.square().mean(), rtol=1e-3, atol=0)
    for settings in ({"protocol": "paper"}, {"standardise": False}):
        raw = make_detector(**settings)
        raw.loss(batch)
        assert raw.standardiser.clouds == 0
        assert torch.equal(raw.standardised(view).base, view.base)
    assert make_detector(protocol="paper", standardise=True).standardise


@pytest.mark.parametrize(
    ("setting", "value"),
    [("geometry_radius", 9.0), ("geometry_source", "cloud"), ("neighbourhoods", (2, 4, 16)), ("backbone_blocks", (1,))],
)
def test_cached_tokens_of_other_settings_are_not_used(setting: str, value: Any) -> None:
    batch, changed = make_batch(), make_detector(jitter_scale=0.0).train()
    first = next(iter(batch.clouds()))
    before = changed.loss(batch)["reconstruction"]
    setattr(changed, setting, value)
    view = changed._view_of(first, "ball/0", 0)
    fresh = changed.view(changed.patches(PointCloudBatch.pack([first], ["ball/0"])))
    assert all(torch.equal(one, other) for one, other in zip(view, fresh, strict=True))
    assert before.isfinite()


def test_cached_tokens_of_another_backbone_are_not_used() -> None:
    batch, detector = make_batch(), make_detector(jitter_scale=0.0).train()
    detector.loss(batch)
    first = next(iter(batch.clouds()))
    old = detector._view_of(first, "ball/0", 0)
    torch.manual_seed(1)
    detector.backbone = make_detector().backbone
    assert not torch.equal(detector._view_of(first, "ball/0", 0).base, old.base)


def test_cached_frozen_tokens_give_the_same_losses_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    clouds = [torch.randn(n, 3, generator=generator) for n in (120, 90, 150)]
    losses = []
    for cache_gb in (1.0, 0.0):
        torch.manual_seed(0)
        model = SeDiR(
            num_groups=16,
            group_size=8,
            width=32,
            encoder_depth=1,
            decoder_depth=1,
            heads=2,
            hidden=32,
            backbone_size="tiny",
            backbone_weights="random",
            frozen_cache_gb=cache_gb,
        )
        model.configure(["a", "b"])
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        encoded = 0

        def count(*_: object) -> None:
            nonlocal encoded
            encoded += 1

        model.backbone.pos_embed.register_forward_hook(count)  # once for the three neighbourhoods
        for step in range(6):
            pair = [clouds[step % 3], clouds[(step + 1) % 3]]
            terms = model.loss(PointCloudBatch.pack(pair, ["x", "y"], category=[step % 2, 1]))
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses.append(terms["loss"].item())
        assert encoded == (3 if cache_gb else 2 * 6)
    assert losses[:6] == losses[6:]


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("heads", 2, 4),
        ("global_token", "mean", "max"),
        ("geometry", "masking", "none"),
        ("decoder", "ggd", "plain"),
        ("geometry_masked", 0.4, 0.7),
    ],
)
def test_a_checkpoint_fixes_what_no_shape_of_a_layer_shows(setting: str, one: Any, other: Any) -> None:
    rest: dict[str, Any] = {"geometry": "masking"} if setting == "geometry_masked" else {}
    models = [make_detector(**{**rest, setting: value}) for value in (one, other)]
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in models]
    if setting != "decoder":
        assert shapes[0] == shapes[1]  # it would load
    fixed, others = (model.fixed_settings() for model in models)
    assert [name for name in fixed if fixed[name] != others.get(name, fixed[name])] == [setting]


def test_thresholds_belong_to_an_order_of_the_points() -> None:
    one, other = (make_detector(protocol=protocol).scoring_settings() for protocol in ("strict", "paper"))
    assert one["protocol"] != other["protocol"]
