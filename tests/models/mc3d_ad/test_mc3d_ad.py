from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from anomaly3d.errors import InputError
from anomaly3d.models.mc3d_ad import MC3DAD
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
    "register": False,
    "hypotheses": 2000,
}


def make_detector(**settings: Any) -> MC3DAD:
    detector = MC3DAD(**TINY | settings)
    detector.configure(["ball", "box"])
    return detector


def box(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, generator=generator) * 2 - 1
    axis = torch.randint(3, (n, 1), generator=generator)
    x.scatter_(1, axis, x.gather(1, axis).sign())
    return x * torch.tensor([4.0, 3.0, 2.0])


def make_batch(n: int = 400) -> PointCloudBatch:
    return PointCloudBatch.pack([ball(n, 0), box(n - 100, 1)], ["ball/a", "box/b"], category=[0, 1])


def shuffled(batch: PointCloudBatch) -> tuple[PointCloudBatch, list[Tensor]]:
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in batch.sizes()]
    clouds = [c[o] for c, o in zip(batch.clouds(), order, strict=True)]
    return PointCloudBatch.pack(clouds, batch.sample_id), order


@pytest.mark.parametrize("register", [False, True])
def test_strict_scores_ignore_the_order_of_points_and_the_category(register, request):
    if register:
        request.getfixturevalue("open3d")
    detector, batch = make_detector(register=register), make_batch()
    detector.loss(batch)
    detector.finish_pass()
    detector.eval()
    other, order = shuffled(batch)
    one, two = detector.score(batch.without_truth()), detector.score(other)
    expected = torch.cat([s[o] for s, o in zip(batch.split(one.point_scores), order, strict=True)])
    assert torch.equal(expected, two.point_scores)
    assert torch.equal(one.object_scores, two.object_scores)
    lying = PointCloudBatch.pack(list(batch.clouds()), batch.sample_id, category=[1, 0])
    assert torch.equal(detector.score(lying).point_scores, one.point_scores)
    if register:
        assert one.category_logits is not None
        assert one.category_logits.argmax(1).tolist() == [0, 1]
    else:
        assert one.category_logits is None


def test_paper_averages_along_the_file_and_draws_one_mask_that_repeats():
    detector, batch = make_detector(protocol="paper").eval(), make_batch(1200)
    assert (detector.row_window, detector.test_masks, detector.standardise) == (511, "drawn", False)
    assert (detector.scoring.normalise, detector.scoring.smooth, detector.scoring.propagate) == (
        "none",
        "none",
        "nearest",
    )
    other, order = shuffled(batch)
    one, two = detector.score(batch), detector.score(other)
    assert torch.equal(one.point_scores, detector.score(batch).point_scores)
    expected = torch.cat([s[o] for s, o in zip(batch.split(one.point_scores), order, strict=True)])
    assert (expected - two.point_scores).abs().max() > 1e-3
    # The first row averages 255 zeros beyond the file, itself and 255 rows after it.
    unsmoothed = make_detector(protocol="paper", row_window=1).eval()
    unsmoothed.load_state_dict(detector.state_dict())
    rows = unsmoothed.score(batch).point_scores[:1200]
    torch.testing.assert_close(one.point_scores[0], rows[:256].sum() / 511)
    # Another name may draw the other mask.
    renamed = [PointCloudBatch.pack([ball(1200, 0)], [name]) for name in "abcdefgh"]
    assert len({detector.score(r).object_scores.item() for r in renamed}) == 2


def test_the_error_is_the_mean_over_both_masks():
    batch = PointCloudBatch.pack([ball(400, 0)], ["a"])
    detector = make_detector(smooth="none", propagate="nearest", standardise=False).eval()
    groups = detector.patches(batch)
    view = detector.view(groups)
    both = [(detector.reconstruct(view, torch.tensor([c])) - view.tokens).norm(dim=-1) for c in (False, True)]
    assert (both[0] - both[1]).abs().max() > 1e-4
    expected = detector.scoring((both[0] + both[1]) / 2, groups, batch)
    torch.testing.assert_close(detector.score(batch).point_scores, expected.point_scores)
    detector.test_masks = "none"
    whole = detector.scoring((detector.reconstruct(view, None) - view.tokens).norm(dim=-1), groups, batch)
    torch.testing.assert_close(detector.score(batch).point_scores, whole.point_scores)


def test_loss_is_the_mean_square_error_and_every_parameter_learns():
    detector, batch = make_detector(standardise=False), make_batch()
    before = {name: value.clone() for name, value in detector.backbone.state_dict().items()}
    detector.train().loss(batch)["loss"].backward()
    for name, parameter in detector.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.any()), name
    assert all(torch.equal(value, before[name]) for name, value in detector.backbone.state_dict().items())
    detector.eval()
    losses = {detector.loss(batch)["loss"].item() for _ in range(16)}  # four draws of two masks
    view = detector.view(detector.patches(batch))
    expected = [
        (detector.reconstruct(view, torch.tensor([a, b])) - view.tokens).square().mean().item()
        for a in (False, True)
        for b in (False, True)
    ]
    assert all(min(abs(loss - e) for e in expected) < 1e-5 * loss for loss in losses)
    assert len(losses) > 1


@pytest.mark.usefixtures("open3d")
def test_the_first_pass_finds_the_templates_by_sample_id():
    detector = make_detector(register=True).train()
    clouds = {"d": ball(300, 0), "b": ball(310, 1), "c": box(320, 2), "a": box(330, 3)}
    for name, category in (("d", 0), ("c", 1), ("b", 0), ("a", 1)):
        terms = detector.loss(PointCloudBatch.pack([clouds[name]], [name], category=[category]))
        terms["loss"].backward()
        assert terms["loss"].item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in detector.parameters() if p.requires_grad)
    assert not detector.finish_pass()
    assert detector.placement is not None
    templates = detector.placement.templates
    found = [set(map(tuple, t.xyz.tolist())) for t in templates.placing().templates]
    assert found == [set(map(tuple, clouds[name].tolist())) for name in ("b", "a")]
    assert detector.loss(PointCloudBatch.pack([clouds["d"]], ["d"], category=[0]))["loss"] > 0
    kept = templates.points
    detector.finish_pass()
    assert templates.points is kept


@pytest.mark.usefixtures("open3d")
def test_a_turned_cloud_is_brought_back_and_its_category_predicted():
    settings = {"register": True, "num_groups": 64, "group_size": 16, "hypotheses": 20_000}
    detector = make_detector(**settings).train()
    batch = PointCloudBatch.pack([wedge(2000, 0), box(2000, 1)], ["a", "b"], category=[0, 1])
    detector.loss(batch)
    detector.finish_pass()
    detector.eval()
    cloud = wedge(2000, 5)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    turn = turn * turn.det().sign()
    scores = detector.score(PointCloudBatch.pack([cloud, cloud @ turn.T], ["still", "turned"]))
    assert scores.category_logits is not None
    assert scores.category_logits.argmax(1).tolist() == [0, 0]
    assert detector.placement is not None
    template = detector.placement.templates.placing().templates[0].xyz
    placed = detector.place_predicted(PointCloudBatch.pack([cloud @ turn.T], ["turned"]))
    assert torch.cdist(placed.batch.xyz, template).amin(1).mean() < 0.25
    assert torch.cdist(cloud @ turn.T, template).amin(1).mean() > 0.5
    # Under `paper` the category is told, and believed.
    told = make_detector(**settings, protocol="paper").eval()
    assert told.told_category
    assert told.placement is not None
    told.placement.templates.keep([wedge(2000, 0), box(2000, 1)])
    objects = [told.score(PointCloudBatch.pack([cloud], ["a"], category=[c])).object_scores for c in (0, 1)]
    assert objects[0] != objects[1]
    assert told.score(PointCloudBatch.pack([cloud], ["a"], category=[0])).category_logits is None


def wedge(n: int, seed: int) -> Tensor:
    """A box that grows along one axis and bends along another: no symmetry."""
    x = box(n, seed)
    x = x * (1 + 0.12 * x[:, :1])
    return torch.stack([x[:, 0], x[:, 1] + 0.08 * x[:, 0] ** 2, x[:, 2]], 1)


@pytest.mark.usefixtures("open3d")
def test_checkpoint_roundtrip_keeps_templates_and_scores():
    detector, batch = make_detector(register=True), make_batch()
    detector.loss(batch)
    detector.finish_pass()
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    restored = make_detector(register=True)
    with pytest.raises(InputError, match=r"seen no training clouds; run `anomaly3d fit`"):
        restored.eval().score(batch)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(detector.eval().score(batch).point_scores, restored.score(batch).point_scores)


def test_bad_use_is_named(open3d):
    with pytest.raises(ValueError, match="category"):
        make_detector(register=True).loss(make_batch().without_truth())


def test_paper_size_and_the_published_34_16_million():
    detector = MC3DAD(num_groups=4096, backbone_size="base", backbone_weights="random", register=False)
    parts = (detector.position, detector.encoder, detector.decoder)
    position, encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in parts)
    frozen = sum(p.numel() for p in detector.backbone.parameters())
    width, hidden, tokens = 256, 1024, 384
    attention = 4 * width * width + 4 * width
    feed_forward = 2 * width * hidden + hidden + width
    norm = 2 * width
    assert position == 4 * 128 + 129 * width
    assert encoder == (tokens + 1) * width + 4 * (attention + feed_forward + 2 * norm)
    assert decoder == 4 * (2 * attention + feed_forward + 3 * norm) + norm + (width + 1) * tokens

    def head(classes: int) -> int:
        """Of classification: two hidden layers of 256 with a norm each."""
        return 768 * 256 + 256 + 2 * 512 + 256 * 256 + 256 + (256 + 1) * classes

    unused_queries = 4 * 4096 * width  # an embedding per patch in each decoder layer, in no computation
    assert frozen + head(40) == 22_098_984  # the frozen Point-MAE with its ModelNet40 head: "22.10 M"
    ours = position + encoder + decoder + frozen
    print(f"\nMC3D-AD at the size for Real3D-AD: {ours / 1e6:.2f} M parameters, published 34.16 M")
    assert ours == 29_429_120
    assert ours + unused_queries + head(12) + head(40) == 34_164_148  # "34.16 M", Real3D-AD's 12 categories


@pytest.mark.slow
def test_training_finds_a_dent_that_the_untrained_model_does_not():
    detector, dents = make_detector(num_groups=96, group_size=16, smooth_sigma=1.0), Dents(box)
    untrained = dents.p_auroc(detector)
    view = detector.train().view(detector.patches(dents.normal))
    train(detector, lambda: detector.loss_of(view)["loss"])
    trained = dents.p_auroc(detector)
    assert trained > max(0.8, untrained + 0.1), (untrained, trained)


def test_a_checkpoint_fixes_heads_and_masks_and_thresholds_the_way_of_scoring() -> None:
    one, other = (make_detector(heads=heads, mask_ratio=ratio) for heads, ratio in ((2, 0.4), (4, 0.25)))
    fixed, others = one.fixed_settings(), other.fixed_settings()
    assert {name for name in fixed if fixed[name] != others[name]} == {"heads", "mask_ratio"}
    changed = make_detector(test_masks="none", row_window=3, protocol="paper").scoring_settings()
    assert {"test_masks", "row_window", "protocol"} <= {k for k, v in one.scoring_settings().items() if changed[k] != v}
