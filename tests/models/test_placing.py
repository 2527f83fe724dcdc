"""What SeDiR, Mamba3dAD and MC3D-AD share: clouds in any pose and from one side, on templates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly3d.data.dataset import Cloud, Sample
from anomaly3d.errors import InputError
from anomaly3d.ice.features import cloud_features
from anomaly3d.models.components.patches import Frame, FramedClouds, PatchSampler
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mc3d_ad import MC3DAD
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.placing import PlacingDetector
from anomaly3d.models.reg3d_ad import Reg3DAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PatchGroups, PointCloudBatch

COMMON: dict[str, Any] = {"num_groups": 32, "backbone_size": "tiny", "backbone_weights": "random"}
COMMON |= {"register": True, "complete": True, "resolution": 0.05}
MODELS: dict[str, tuple[type[PlacingDetector], dict[str, Any]]] = {
    "sedir": (SeDiR, {"group_size": 16, "width": 32, "heads": 4, "hidden": 64, "pad": True}),
    "mc3d": (MC3DAD, {"group_size": 16, "width": 32, "heads": 4, "hidden": 64, "pad": True}),
    "mamba": (
        Mamba3dAD,
        {"group_size": 16, "slots": 32, "descriptor_width": 8, "state": 16, "heads": 2, "voxel_size": None}
        | {"corruption": "tokens", "views": 3, "yaw": False},
    ),
}


def wedge(n: int, seed: int, side: float = 2.0) -> Tensor:
    """A box without symmetry: it grows along one axis and bends along another."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, generator=generator) * 2 - 1
    axis = torch.randint(3, (n, 1), generator=generator)
    x.scatter_(1, axis, x.gather(1, axis).sign())
    x = x * torch.tensor([4.0, 3.0, side])
    x = x * (1 + 0.12 * x[:, :1])
    return torch.stack([x[:, 0], x[:, 1] + 0.08 * x[:, 0] ** 2, x[:, 2]], 1)


def turned(cloud: Tensor, seed: int) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))
    out = cloud @ (q * q.det().sign()).T
    return out - out.mean(0)


def trained(name: str, **settings: Any) -> PlacingDetector:
    """A detector that has found its templates and made one step."""
    torch.manual_seed(0)
    kind, more = MODELS[name]
    detector = kind(**COMMON | more | settings)
    detector.configure(["flat", "tall"])
    batch = PointCloudBatch.pack([wedge(2500, 0), wedge(2500, 1, 1.0)], ["flat/0", "tall/0"], category=[0, 1])
    assert not detector.learns
    loss = detector.train().loss(batch)["loss"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in detector.parameters() if p.requires_grad)
    assert not detector.finish_pass()
    assert detector.loss(batch)["loss"].item() > 0
    return detector


def one_side(cloud: Tensor) -> Tensor:
    """The half of a cloud that lies towards a corner."""
    towards = (cloud - cloud.mean(0)) @ torch.tensor([0.4, 0.5, 0.8])
    return cloud[towards > 0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("open3d")
def test_a_scan_from_one_side_in_any_pose_scores_as_on_its_template(name: str):
    """The same scan in two poses: alike but for what registration leaves, the category told by the templates."""
    detector = trained(name).eval()
    scan = one_side(wedge(6000, 9))
    poses = PointCloudBatch.pack([turned(scan, 3), turned(scan, 4)], ["a", "b"])
    placed = detector.place_predicted(poses)
    assert placed.logits is not None
    assert placed.logits.argmax(1).tolist() == [0, 0]
    assert placed.frames is not None
    radius = float(placed.frames[0].radius)
    first, second = placed.batch.clouds()
    assert (first - second).norm(dim=1).max() < 0.02 * radius
    assert torch.cdist(first, wedge(20_000, 0)).amin(1).max() < 0.1 * radius
    one, two = detector.score(poses).point_scores.split(len(scan))
    if name == "mamba":
        return  # untrained, its discriminator tells any two patches apart
    assert torch.corrcoef(torch.stack([one, two]))[0, 1] > 0.9


@pytest.mark.usefixtures("open3d")
def test_a_scan_is_completed_by_its_template_and_only_where_it_shows_nothing():
    detector = trained("sedir").eval()
    scan = one_side(wedge(6000, 9))
    batch = PointCloudBatch.pack([turned(scan, 3)], ["a"])
    whole = detector.place_predicted(batch)
    detector = trained("sedir", complete=False).eval()
    bare = detector.place_predicted(batch)
    assert whole.frames is not None
    assert torch.equal(whole.batch.xyz, bare.batch.xyz)
    count, edge = len(bare.seen.xyz), 0.05 * float(whole.frames[0].radius)
    assert torch.equal(whole.seen.xyz[:count], bare.seen.xyz)  # thinned out, and first
    assert count < 0.5 * len(scan)
    added = whole.seen.xyz[count:]
    assert 0.4 * count < len(added) < 1.6 * count
    assert torch.cdist(added, bare.seen.xyz).amin(1).min() > 0.8 * edge - 1e-4
    wide = trained("sedir", complete_gap=2.0).eval().place_predicted(batch).seen.xyz[count:]
    assert 0.4 * count < len(wide) < len(added)
    assert torch.cdist(wide, bare.seen.xyz).amin(1).min() > 2 * edge - 1e-4
    surface = wedge(20_000, 0)
    assert torch.cdist(surface, whole.seen.xyz).amin(1).max() < 3 * edge  # no gap
    assert torch.cdist(surface, bare.seen.xyz).amin(1).max() > 5 * edge


@pytest.mark.usefixtures("open3d")
def test_what_the_template_adds_does_not_decide_the_object_s_score():
    """Patches on the unseen side may get the largest errors: the object's score is still the largest of its points."""
    for name in MODELS:
        detector = trained(name).eval()
        scored = detector.score(PointCloudBatch.pack([turned(one_side(wedge(6000, 9)), 3)], ["a"]))
        assert scored.object_scores[0] == scored.point_scores.max()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("open3d")
def test_the_templates_frame_is_that_of_training_and_scoring(name: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []
    frame = PatchSampler.frame

    def spy(self: PatchSampler, batch: PointCloudBatch, frames: list[Frame] | None = None) -> Any:
        assert frames is not None
        seen.extend(f.radius.item() for f in frames)
        return frame(self, batch, frames)

    monkeypatch.setattr(PatchSampler, "frame", spy)
    detector = trained(name).eval()
    detector.score(PointCloudBatch.pack([turned(wedge(2500, 5), 1)], ["a"]))
    flat, tall = (wedge(2500, seed, side) for seed, side in ((0, 2.0), (1, 1.0)))
    radii = [float((x - x.mean(0)).norm(dim=1).max()) for x in (flat, tall)]
    assert {round(r, 4) for r in seen} == {round(r, 4) for r in radii}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in MODELS),
        ("sedir", {"relative": True}),
        ("sedir", {"relative": True, "offset_share": 0.5}),
        ("mamba", {"offset_share": 0.5}),
    ],
)
@pytest.mark.usefixtures("open3d")
def test_the_order_of_a_scan_s_points_changes_no_score(name: str, more: dict[str, Any]):
    detector = trained(name, **more)
    detector.finish_pass()
    detector.eval()
    scan = turned(one_side(wedge(6000, 9)), 3)
    order = torch.randperm(len(scan), generator=torch.Generator().manual_seed(0))
    one, other = (detector.score(PointCloudBatch.pack([xyz], ["a"])) for xyz in (scan, scan[order]))
    assert torch.equal(one.point_scores[order], other.point_scores)
    assert torch.equal(one.object_scores, other.object_scores)


@pytest.mark.usefixtures("open3d")
def test_ice_sees_clouds_as_they_are_scored():
    detector = trained("sedir").eval()
    assert isinstance(detector, SeDiR)
    cloud = wedge(2500, 7)
    samples = [Sample(Cloud(xyz.numpy(), None), str(i), 0, 0) for i, xyz in enumerate((cloud, turned(cloud, 2)))]
    found = cloud_features(detector, samples, torch.device("cpu"), "")  # pyright: ignore[reportArgumentType]
    assert found.error[1] == pytest.approx(found.error[0], rel=0.05)
    assert np.corrcoef(found.rebuilt)[0, 1] > 0.99


@pytest.mark.usefixtures("open3d")
def test_a_pass_over_the_training_clouds_registers_each_once(monkeypatch: pytest.MonkeyPatch):
    detector = trained("mamba", views=8)
    assert detector.placement is not None
    template, calls = detector.placement.templates.placing().templates[0], []
    found = template.register
    monkeypatch.setattr(template, "register", lambda xyz: calls.append(1) or found(xyz))
    cloud = wedge(2500, 6)
    batch = PointCloudBatch.pack([cloud], ["flat/1"], category=[0])
    for _ in range(6):
        detector.loss(batch)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["sedir", "mamba"])
def test_the_papers_register_nothing(name: str):
    kind, more = MODELS[name]
    with pytest.raises(InputError, match="protocol paper registers no clouds"):
        kind(**COMMON | more | {"protocol": "paper"})


def test_without_a_placement_clouds_stay_as_they_stand():
    torch.manual_seed(0)
    detector = SeDiR(num_groups=32, group_size=16, width=32, heads=4, backbone_size="tiny", backbone_weights="random")
    batch = PointCloudBatch.pack([wedge(500, 0)], ["a"])
    placed = detector.place_predicted(batch)
    assert placed.batch is placed.seen is batch
    assert placed.frames is placed.logits is None
    assert detector.learns
    assert not detector.finish_pass()


@pytest.mark.parametrize("kind", [PatchCorePointMAE, Reg3DAD])
@pytest.mark.usefixtures("open3d")
def test_a_bank_sees_clouds_as_the_detectors_that_learn_do(kind: type[PatchCorePointMAE], monkeypatch):
    learned = trained("sedir").eval()
    assert isinstance(learned, SeDiR)
    settings = {name: value for name, value in COMMON.items() if name != "register"}  # the default, or no setting
    bank = kind(**settings, group_size=16, pad=True, coreset_size=40)
    bank.configure(["flat", "tall"])
    clouds = PointCloudBatch.pack([wedge(2500, 0), wedge(2500, 1, 1.0)], ["flat/0", "tall/0"], category=[0, 1])
    framed: list[Tensor] = []
    group = PatchSampler.group

    def recording(self: PatchSampler, seen: FramedClouds) -> PatchGroups:
        framed.extend(seen.clouds)
        return group(self, seen)

    monkeypatch.setattr(PatchSampler, "group", recording)
    bank.observe(clouds)
    bank.finish_pass()
    scan = PointCloudBatch.pack([turned(one_side(wedge(6000, 9)), 3)], ["a"])
    scored = bank.eval().score(scan)
    of_bank, framed[:] = list(framed), []
    for cloud, name, category in clouds.named_clouds():
        placed = learned.place_known(cloud, name, category)
        learned.patches(placed.seen, placed.frames)
    placed = learned.place_predicted(scan)
    learned.patches(placed.seen, placed.frames)
    assert [len(cloud) for cloud in of_bank] == [len(cloud) for cloud in framed]
    for one, other in zip(of_bank, framed, strict=True):
        torch.testing.assert_close(one, other)
    assert len(scored.point_scores) == len(scan.xyz)
    assert scored.object_scores[0] == scored.point_scores.max()
    assert bank.fixed_settings()["resolution"] == 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"register": False, "resolution": 0.05}, r"resolution: .* set register to true"),
        ({"complete": True}, r"complete: .* a resolution"),
        ({"protocol": "paper", "resolution": 0.05}, "resolution: under protocol paper"),
        ({"resolution": 0.0}, "resolution"),
    ],
)
def test_a_bank_s_completion_needs_templates_and_strict(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        PatchCorePointMAE(backbone_size="tiny", backbone_weights="random", num_groups=8, group_size=8, **settings)


@pytest.mark.parametrize("kind", [SeDiR, Mamba3dAD, MC3DAD])
def test_completing_needs_templates(kind: type[PlacingDetector]):
    small: dict[str, Any] = {"backbone_size": "tiny", "backbone_weights": "random", "blocks": None}
    settings = small if kind is Mamba3dAD else {k: v for k, v in small.items() if k != "blocks"}
    with pytest.raises(InputError, match=r"complete: .* set register to true"):
        kind(**settings, register=False, complete=True)
