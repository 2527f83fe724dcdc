"""What every baseline claims: it sees a planted bump, no score depends on the order of the points, and so on."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from part_shapes import batch, bracket, bumped, plate, training
from sklearn.metrics import roc_auc_score

from anomaly3d.errors import InputError
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.btf import BTF
from anomaly3d.models.m3dm import M3DM
from anomaly3d.models.patchcore import PatchCore
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.reg3d_ad import Reg3DAD
from anomaly3d.models.simple3d import Simple3D
from anomaly3d.models.template_distance import TemplateDistance
from anomaly3d.types import PointCloudBatch

TOKENS = {"num_groups": 128, "group_size": 32}
FEW = {"hypotheses": 20_000}
METHODS: dict[str, Callable[..., BankDetector]] = {
    "template": partial(TemplateDistance, **FEW),
    "btf-raw": partial(BTF, feature="raw"),
    "btf-fpfh": partial(BTF, feature="fpfh"),
    "patchcore-fpfh": partial(PatchCore, feature="fpfh", coreset_size=1000, **FEW),
    "patchcore-fpfh-raw": partial(PatchCore, feature="fpfh_raw", coreset_size=1000, **FEW),
    "patchcore-pointmae": partial(PatchCorePointMAE, register=False, **TOKENS),
    "m3dm": partial(M3DM, coreset_share=0.5, **TOKENS),
    "reg3dad": partial(Reg3DAD, **TOKENS, **FEW),
    "simple3d": partial(Simple3D, coreset_size=1000),
}
WITHOUT_OPEN3D = {"btf-raw", "patchcore-pointmae", "m3dm"}


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest) -> BankDetector:
    if request.param not in WITHOUT_OPEN3D:
        pytest.importorskip("open3d")
    return fit(METHODS[request.param]())


def fit(detector: BankDetector) -> BankDetector:
    detector.configure(["bracket", "plate"])
    detector.loss(training())
    assert detector.finish_pass()
    return detector.eval()


def test_scores_in_strict_do_not_depend_on_the_order_of_points(fitted):
    clouds = batch([bracket(1500, 11), plate(1200, 12)])
    order = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in clouds.sizes()]
    shuffled = PointCloudBatch.pack([c[o] for c, o in zip(clouds.clouds(), order, strict=True)], clouds.sample_id)
    one, other = fitted.score(clouds), fitted.score(shuffled)
    expected = torch.cat([s[o] for s, o in zip(clouds.split(one.point_scores), order, strict=True)])
    assert torch.equal(expected, other.point_scores)
    assert torch.equal(one.object_scores, other.object_scores)
    assert torch.equal(one.category_logits, other.category_logits)
    assert one.point_scores.isfinite().all()
    assert one.point_scores.std() > 0


def test_a_planted_bump_stands_out_and_the_category_is_right(fitted):
    clean = batch([bracket(2500, 20), bracket(2500, 21), plate(2500, 22), plate(2500, 23)])
    bumps = [bumped(bracket(2500, 24), (3.5, 1.0, 1.0)), bumped(plate(2500, 25), (4.5, 2.5, 0.6))]
    prediction = fitted.score(batch([cloud for cloud, _ in bumps]))
    for scores, (_, mask) in zip(prediction.point_scores.split([len(mask) for _, mask in bumps]), bumps, strict=True):
        assert roc_auc_score(mask.numpy(), scores.numpy()) > 0.75
    normal = fitted.score(clean)
    assert prediction.object_scores[0] > normal.object_scores[:2].max()
    assert prediction.object_scores[1] > normal.object_scores[2:].max()
    assert prediction.category_logits.argmax(1).tolist() == [0, 1]
    assert normal.category_logits.argmax(1).tolist() == [0, 0, 1, 1]


def test_the_memory_is_in_the_checkpoint(fitted, request):
    name = request.node.callspec.params["fitted"]
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    restored = METHODS[name]()
    restored.configure(fitted.categories)
    restored.load_state_dict(torch.load(file, weights_only=True))
    clouds = batch([bracket(800, 30)])
    assert torch.equal(fitted.score(clouds).point_scores, restored.eval().score(clouds).point_scores)


def test_no_training_clouds_and_paper_settings(fitted, request):
    name = request.node.callspec.params["fitted"]
    with pytest.raises(InputError, match=r"has seen no training clouds; run `anomaly3d fit`"):
        METHODS[name]().score(batch([bracket(300, 0)]))
    if name != "template":
        voxel = {} if name in {"patchcore-pointmae", "m3dm", "reg3dad"} else {"voxel_size": 0.2}
        paper = fit(METHODS[name](protocol="paper", **voxel))
        assert paper.score(batch([bracket(900, 31)])).point_scores.isfinite().all()


@pytest.mark.parametrize("name", ["btf-raw", "btf-fpfh"])
def test_strict_features_have_no_unit(name):
    if name not in WITHOUT_OPEN3D:
        pytest.importorskip("open3d")
    metres, millimetres = METHODS[name](), METHODS[name]()
    for detector, unit in ((metres, 1.0), (millimetres, 1024.0)):
        detector.configure(["bracket", "plate"])
        train = training()
        detector.observe(PointCloudBatch.pack([unit * c for c in train.clouds()], train.sample_id, [0, 0, 1, 1]))
        detector.finish_pass()
    cloud = batch([bracket(1000, 40)])
    scaled = PointCloudBatch.pack([1024 * cloud.xyz], ["scaled"])
    torch.testing.assert_close(
        metres.score(cloud).point_scores, millimetres.score(scaled).point_scores, rtol=1e-3, atol=1e-3
    )


def test_template_distance_is_the_distance_to_the_nearest_training_point():
    pytest.importorskip("open3d")
    detector = TemplateDistance(protocol="paper", **FEW)
    detector.configure(["bracket"])
    cloud = bracket(2000, 0)
    detector.observe(batch([cloud], [0]))
    detector.finish_pass()
    test, mask = bumped(cloud, (3.5, 1.0, 1.0))
    scores = detector.score(batch([test])).point_scores
    expected = torch.cdist(test, cloud).amin(1)
    assert (scores - expected)[mask].abs().max() < 0.1
    assert scores[~mask].median() < 0.05


def test_clouds_count_once_and_their_order_does_not_matter():
    first, second = BTF(feature="raw"), BTF(feature="raw")
    clouds = [bracket(400, i) for i in range(3)]
    for detector, order in ((first, [0, 1, 2]), (second, [2, 0, 1, 0, 2])):
        detector.configure(["bracket"])
        for i in order:
            detector.observe(PointCloudBatch.pack([clouds[i]], [f"cloud{i}"], [0]))
        detector.finish_pass()
    assert torch.equal(first.bank, second.bank)


def test_a_category_without_training_clouds_is_named():
    detector = BTF(feature="raw")
    detector.configure(["bracket", "plate"])
    detector.observe(batch([bracket(300, 0)], [0]))
    with pytest.raises(InputError, match=r"plate: no training cloud .* trainer\.limit_train_batches"):
        detector.finish_pass()


@pytest.mark.parametrize("name", METHODS)
def test_a_cloud_of_coincident_points_is_named(name):
    detector = METHODS[name]()
    detector.configure(["bracket"])
    lonely = PointCloudBatch.pack([torch.full((300, 3), 0.1)], ["lonely"], [0])
    with pytest.raises(InputError, match="lonely: all points coincide"):
        detector.observe(lonely)
    if name in WITHOUT_OPEN3D:
        detector.observe(batch([bracket(300, 0)], [0]))
        detector.finish_pass()
        with pytest.raises(InputError, match="lonely: all points coincide"):
            detector.score(lonely)


def test_too_large_a_memory_is_one_line():
    detector = BTF(feature="raw", memory_gb=1e-6)
    detector.configure(["bracket", "plate"])
    digits = r"[\d.]*[1-9][\d.e-]*"  # not "0.00"
    with pytest.raises(
        InputError, match=rf"memory_gb=1e-06: BTF keeps {digits} GiB of 4 training clouds; raise memory"
    ):
        detector.observe(training())
    with pytest.raises(InputError, match="feature='colour'"):
        BTF(feature="colour")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="category"):
        detector.observe(training().without_truth())


def test_m3dm_under_paper_is_as_published():
    published = M3DM(protocol="paper", backbone_size="base", backbone_weights="random")
    assert (published.patches.num_groups, published.patches.group_size) == (16384, 128)
    assert published.backbone_blocks == (4, 8, 12)
    assert M3DM().patches.num_groups == 4096
    assert M3DM().backbone_blocks == (2, 4, 6)
    few = M3DM(protocol="paper", backbone_size="base", backbone_weights="random", num_groups=4)
    assert few.describe(bracket(200, 0), "cloud").shape == (4, 1152)
    assert M3DM(num_groups=4, backbone_blocks=[1, 3]).describe(bracket(200, 0), "cloud").shape == (4, 2 * 192)


def test_the_memory_that_is_built_is_limited_too():
    class Wide(BTF):
        def build(self, seen):
            super().build(seen)
            self.bank = self.bank.repeat(1, 1000)

    detector = Wide(feature="raw", memory_gb=1e-4)
    detector.configure(["bracket"])
    detector.observe(batch([bracket(300, 0)], [0]))
    with pytest.raises(InputError, match=r"memory_gb=0\.0001: Wide keeps 0\.00\d+ GiB of 1 training clouds"):
        detector.finish_pass()


@pytest.mark.parametrize("name", ["patchcore-fpfh", "reg3dad"])
def test_features_that_are_computed_last_are_limited_before_a_coreset_of_them(name):
    pytest.importorskip("open3d")
    points = bracket(1000, 0)
    detector = METHODS[name](memory_gb=points.nbytes / 2**30, coreset_size=10)
    detector.configure(["bracket"])
    detector.observe(batch([points], [0]))
    with pytest.raises(InputError, match="raise memory_gb"):
        detector.finish_pass()


def test_reg3d_ad_averages_maps_in_units_of_the_training_distances():
    pytest.importorskip("open3d")
    detector = fit(METHODS["reg3dad"]())
    assert isinstance(detector, Reg3DAD)
    parts = detector.coordinates.split(detector.coordinate_offsets.diff().tolist())
    for part, (low, high) in zip(parts, detector.ranges[:, 0], strict=True):
        distance = np.sort(torch.cdist(part.double(), part.double()).numpy(), axis=1)[:, 1]
        assert low.item() == pytest.approx(distance.min(), abs=1e-5)
        assert high.item() == pytest.approx(distance.max(), rel=1e-4)


@pytest.mark.slow
def test_templates_that_are_loaded_replace_those_in_use() -> None:
    pytest.importorskip("open3d")
    two, clouds = fit(METHODS["template"]()), batch([bracket(1500, 11)])
    swapped = METHODS["template"]()
    swapped.configure(["bracket", "plate"])
    swapped.observe(batch([plate(1200, 3), plate(1200, 4)], [0, 1]))
    swapped.finish_pass()
    elsewhere = swapped.score(clouds).point_scores
    assert not torch.equal(two.score(clouds).point_scores, elsewhere)
    two.load_state_dict(swapped.state_dict())
    assert torch.equal(two.score(clouds).point_scores, elsewhere)
