"""What every baseline claims: it sees a planted bump, no score depends on the order of the points, and so on."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from part_shapes import batch, bracket, bumped, plate, training
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from anomaly3d.errors import InputError
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.btf import BTF
from anomaly3d.models.components.fpfh import fpfh
from anomaly3d.models.components.memory import nearest, reweighted
from anomaly3d.models.components.registration import RegistrationSettings
from anomaly3d.models.components.seen import Seen
from anomaly3d.models.components.templates import aligned
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
    "patchcore-pointmae-registered": partial(PatchCorePointMAE, register=True, **TOKENS, **FEW),
    "m3dm": partial(M3DM, coreset_share=0.5, **TOKENS),
    "reg3dad": partial(Reg3DAD, **TOKENS, **FEW),
    "simple3d": partial(Simple3D, coreset_size=1000),
}
WITHOUT_OPEN3D = {"btf-raw", "patchcore-pointmae", "m3dm"}


@pytest.fixture(scope="module", params=METHODS)
def fitted(request: pytest.FixtureRequest) -> BankDetector:
    if request.param not in WITHOUT_OPEN3D:
        request.getfixturevalue("open3d")
    return fit(METHODS[request.param]())


def fit(detector: BankDetector, clouds: PointCloudBatch | None = None) -> BankDetector:
    detector.configure(["bracket", "plate"])
    detector.loss(clouds or training())
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
    height = {PatchCorePointMAE: 0.8}.get(type(fitted), 0.5)  # its patches, 128 of 32 points, are coarse
    bumps = [bumped(bracket(2500, 24), (3.5, 1.0, 1.0), height), bumped(plate(2500, 25), (4.5, 2.5, 0.6), height)]
    prediction = fitted.score(batch([cloud for cloud, _ in bumps]))
    for scores, (_, mask) in zip(prediction.point_scores.split([len(mask) for _, mask in bumps]), bumps, strict=True):
        assert roc_auc_score(mask.numpy(), scores.numpy()) > 0.75
    normal = fitted.score(clean)
    assert prediction.object_scores[0] > normal.object_scores[:2].max()
    assert prediction.object_scores[1] > normal.object_scores[2:].max()
    assert prediction.category_logits.argmax(1).tolist() == [0, 1]
    assert normal.category_logits.argmax(1).tolist() == [0, 0, 1, 1]


# Registered clouds keep the ranking of their points in any pose. Without registration the voxel filter, whose grid
# follows the axes of the file, draws other key points: least of five, less what another part may bring.
RANKING = {
    "template": 0.99,
    "patchcore-fpfh": 0.95,
    "patchcore-fpfh-raw": 0.95,
    "patchcore-pointmae-registered": 0.95,
    "btf-fpfh": 0.75,
    "simple3d": 0.7,
    "reg3dad": 0.99,
}


def test_points_keep_their_ranking_under_a_rigid_motion(fitted, request):
    least = RANKING.get(request.node.callspec.params["fitted"])
    if least is None:
        pytest.skip("sees the pose, or its patches start at another point")
    turn = torch.from_numpy(Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()).float()
    for shape, at in ((bracket, (3.5, 1.0, 1.0)), (plate, (4.5, 2.5, 0.6))):
        cloud = bumped(shape(2500, 24), at)[0]
        one, other = (fitted.score(batch([xyz])) for xyz in (cloud, cloud @ turn.T))
        spearman = np.corrcoef(rankdata(one.point_scores), rankdata(other.point_scores))[0, 1]
        assert spearman >= least
        assert other.object_scores[0].item() == pytest.approx(one.object_scores[0].item(), rel=0.2)


def test_the_memory_is_in_the_checkpoint(fitted, request):
    name = request.node.callspec.params["fitted"]
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    restored = METHODS[name]()
    restored.configure(fitted.categories)
    restored.load_state_dict(torch.load(file, weights_only=True))
    clouds = batch([bracket(800, 30)])
    one, other = fitted.score(clouds), restored.eval().score(clouds)
    assert torch.equal(one.point_scores, other.point_scores)
    assert one.category_logits is not None
    assert other.category_logits is not None
    assert torch.equal(one.category_logits, other.category_logits)


def test_no_training_clouds_and_paper_settings(fitted, request):
    name = request.node.callspec.params["fitted"]
    with pytest.raises(InputError, match=r"has seen no training clouds; run `anomaly3d fit`"):
        METHODS[name]().score(batch([bracket(300, 0)]))
    if name != "template":
        voxel = {} if name in {"patchcore-pointmae", "m3dm", "reg3dad"} else {"voxel_size": 0.2}
        paper = fit(METHODS[name](protocol="paper", **voxel))
        assert paper.score(batch([bracket(900, 31)])).point_scores.isfinite().all()


@pytest.mark.parametrize("name", ["btf-raw", "btf-fpfh"])
def test_strict_features_have_no_unit(name, request):
    if name not in WITHOUT_OPEN3D:
        request.getfixturevalue("open3d")
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


def test_template_distance_is_the_distance_to_the_nearest_training_point(open3d):
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


@pytest.mark.parametrize("name", METHODS)
def test_neither_seed_nor_order_of_the_training_clouds_changes_a_bank(name, request):
    """So that `seeds: [0]` in the grids stands for every seed."""
    if name not in WITHOUT_OPEN3D:
        request.getfixturevalue("open3d")
    scored, test = [], batch([bumped(bracket(1200, 9), (3.5, 1.0, 1.0))[0], plate(900, 8)])
    few = [(bracket(900, 0), 0), (bracket(800, 1), 0), (plate(700, 2), 1), (plate(800, 3), 1)]
    for seed, order in ((0, [0, 1, 2, 3]), (1, [2, 1, 3, 0])):
        torch.manual_seed(seed)
        detector = METHODS[name](**({"hypotheses": 2000} if "hypotheses" in METHODS[name].keywords else {}))
        detector.configure(["bracket", "plate"])
        for i in order:
            detector.observe(PointCloudBatch.pack([few[i][0]], [f"cloud{i}"], [few[i][1]]))
        detector.finish_pass()
        scored.append(detector.eval().score(test))
    assert torch.equal(scored[0].point_scores, scored[1].point_scores)
    assert torch.equal(scored[0].object_scores, scored[1].object_scores)


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


def test_template_distance_does_not_depend_on_a_clouds_density(open3d):
    detector = fit(METHODS["template"]())
    assert detector.scoring_settings() == {
        "neighbours": 16,
        "top_share": 0.01,
        "hypotheses": 20_000,
        "voxel_size": 0.03,
    }
    dense, mask = bumped(bracket(40_000, 24), (3.5, 1.0, 1.0))
    some = torch.randperm(len(dense), generator=torch.Generator().manual_seed(0))[:6000]
    one, other = (detector.score(batch([cloud])) for cloud in (dense, dense[some]))
    assert other.object_scores.item() == pytest.approx(one.object_scores.item(), rel=0.1)
    plain = fit(METHODS["template"](voxel_size=0))
    thin, full = (plain.score(batch([cloud])).object_scores.item() for cloud in (dense[some], dense))
    assert abs(thin - full) > abs(other.object_scores.item() - one.object_scores.item())
    assert roc_auc_score(mask, one.point_scores) > 0.9
    crumb = dense[(dense - dense[0]).norm(dim=1) < 0.2]  # fewer voxels than tell of a surface
    assert detector.score(batch([crumb])).point_scores.isfinite().all()


def test_features_are_averaged_over_64_key_points_under_strict():
    for name in ("btf-raw", "btf-fpfh", "patchcore-fpfh", "simple3d"):
        assert METHODS[name]().scoring_settings()["neighbours"] == 64


def test_what_is_no_clouds_fault_names_no_cloud():
    with pytest.raises(InputError, match=r"^The detector has seen no training clouds"):
        TemplateDistance().score(batch([bracket(500, 1)]))


def test_lengths_in_another_unit_than_the_papers_are_told():
    cloud = bracket(900, 31) / 1000
    for detector in (BTF(protocol="paper", feature="fpfh"), Simple3D(protocol="paper", voxel_size=0.5)):
        with pytest.raises(InputError, match=r"^c/train/0: voxel_size: an edge of 0.5 leaves 1 of 900 points"):
            detector.observe(PointCloudBatch.pack([cloud], ["c/train/0"], [0]))


def test_m3dm_under_paper_is_as_published():
    published = M3DM(protocol="paper", backbone_size="base", backbone_weights="random")
    assert (published.patches.num_groups, published.patches.group_size) == (16384, 128)
    assert published.backbone_blocks == (4, 8, 12)
    assert M3DM().patches.num_groups == 4096
    assert M3DM().backbone_blocks == (2, 4, 6)
    few = M3DM(protocol="paper", backbone_size="base", backbone_weights="random", num_groups=4)
    assert few.describe(bracket(200, 0), "cloud").shape == (4, 1152)
    assert M3DM(num_groups=4, backbone_blocks=[1, 3]).describe(bracket(200, 0), "cloud").shape == (4, 2 * 192)


def test_m3dm_s_object_score_is_reweighted_under_paper():
    detector = fit(METHODS["m3dm"](protocol="paper"))
    assert isinstance(detector, M3DM)
    cloud = batch([bumped(bracket(2500, 20), (3.5, 1.0, 1.0))[0]])
    tokens = detector.tokens(cloud.xyz, "cloud0")[1]
    bank = detector.bank[: detector.offsets[1]]
    distance, index = (part[:, 0] for part in nearest(tokens, bank))
    expected = reweighted(tokens, distance, index, bank, 3)
    scored = detector.score(cloud)
    assert scored.object_scores[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert scored.object_scores[0] < 0.99 * distance.max()


@pytest.mark.parametrize("method", [PatchCorePointMAE, Reg3DAD])
def test_tokens_are_as_published_under_paper(method):
    published = method(protocol="paper", backbone_size="base", backbone_weights="random")
    assert (published.patches.num_groups, published.patches.group_size) == (16384, 128)
    assert published.backbone_blocks == (4, 8, 12)
    ours = method()
    assert (ours.patches.num_groups, ours.backbone_blocks, ours.reweighting) == (1024, (4,), None)
    assert method(protocol="paper", num_groups=9, backbone_blocks=[2]).backbone_blocks == (2,)


def test_reg3d_ad_averages_its_maps_under_paper():
    assert Reg3DAD(protocol="paper").coordinate_share == 0.5
    assert Reg3DAD().coordinate_share == 0.6
    assert Reg3DAD(protocol="paper", coordinate_share=0.0).coordinate_share == 0


def test_raw_weight_of_paper_is_that_of_coordinates_repeated_eleven_times(open3d):
    features = BTF(feature="fpfh_raw", protocol="paper", voxel_size=0.2).features
    both = [features(features.keypoints(bracket(900, i), 1.0), torch.zeros(3), 1.0) for i in (0, 1)]
    weight = both[0][:, 33:].norm() / features.keypoints(bracket(900, 0), 1.0).norm()
    repeated = [torch.cat([part[:, :33], (part[:, 33:] / weight).repeat(1, 11)], dim=1) for part in both]
    once, eleven_times = (nearest(query, bank)[0] for query, bank in (both, repeated))
    torch.testing.assert_close(once, eleven_times, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", [BTF, PatchCore])
def test_neighbours_of_a_histogram_are_a_setting(open3d, method):
    keypoints = bracket(900, 0)
    for k in (10, 100):
        features = method(feature_neighbours=k, voxel_size=0.1).features
        found = features(keypoints, torch.zeros(3), 1.0)
        assert torch.equal(found, fpfh(keypoints, 0.5, k, normal_radius=0.2))
        assert features.settings()["feature_neighbours"] == k
    assert method().features.feature_neighbours == method(protocol="paper").features.feature_neighbours == 100


def test_histograms_of_a_scan_from_one_side_are_the_whole_s_only_where_walls_are_thick(open3d):
    """A bulging plate of two faces, and the upper face alone, away from its borders."""
    flat = torch.rand(6000, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    upper = torch.cat([flat, -0.3 * flat.square().sum(1, keepdim=True)], dim=1)
    inside = flat.abs().amax(1) < 1
    reach = 0.3

    def differing(wall: float) -> float:
        whole = fpfh(torch.cat([upper, upper - torch.tensor([0.03, 0.03, wall])]), reach, normal_radius=0.15)
        return (whole[: len(upper)] - fpfh(upper, reach, normal_radius=0.15))[inside].norm(dim=1).median().item()

    assert differing(3 * reach) < 1e-6
    assert differing(0.5 * reach) > 20  # of histograms that sum to 300


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
def test_features_that_are_computed_last_are_limited_before_a_coreset_of_them(open3d, name):
    points = bracket(1000, 0)
    detector = METHODS[name](memory_gb=points.nbytes / 2**30, coreset_size=10)
    detector.configure(["bracket"])
    detector.observe(batch([points], [0]))
    with pytest.raises(InputError, match="raise memory_gb"):
        detector.finish_pass()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_reg3d_ad_weighs_maps_in_units_of_the_training_distances(open3d, share):
    few = batch([bracket(700, 0), bracket(700, 1), plate(700, 2), plate(700, 3)], [0, 0, 1, 1])
    # A point's error is its nearest patch's.
    detector = fit(METHODS["reg3dad"](smooth="none", propagate="nearest", coordinate_share=share), few)
    assert isinstance(detector, Reg3DAD)

    def stretched(distance: np.ndarray, bank: np.ndarray, power: int = 1) -> np.ndarray:
        among = np.sort(cdist(bank, bank), axis=1)[:, 1] ** power  # no coreset: the bank holds all training features
        return (distance**power - among.min()) / (among.max() - among.min())

    for category, shape in enumerate((bracket, plate)):
        cloud = batch([bumped(shape(700, 20), (3.5, 1.0, 0.6))[0]])
        placed = detector.placed(cloud.xyz).xyz
        groups, tokens = detector.tokens(placed, "cloud0")
        coordinates = detector.coordinates.split(detector.coordinate_offsets.diff().tolist())[category].numpy()
        bank = detector.bank.split(detector.offsets.diff().tolist())[category].numpy()
        centres = (groups.centres[0] * groups.radius[0] + groups.centroid[0]).numpy()
        nearest_patch = cdist(placed.numpy(), centres).argmin(1)
        to_coordinates, to_bank = cdist(placed.numpy(), coordinates).min(1), cdist(tokens.numpy(), bank).min(1)
        of_coordinates = stretched(to_coordinates, coordinates)
        of_tokens = stretched(to_bank, bank)[nearest_patch]
        assert min(of_coordinates.std(), of_tokens.std()) > 0.05  # neither map is lost in the mean
        scores = detector.score(cloud)
        expected = share * of_coordinates + (1 - share) * of_tokens
        np.testing.assert_allclose(scores.point_scores.numpy(), expected, rtol=1e-3, atol=1e-3)
        assert scores.object_scores[0] == scores.point_scores.max()

        # As published: of squared distances, and the maxima of the two maps, which lie at two points.
        detector.protocol, detector.ranges = "paper", detector.ranges.square()
        published = detector.score(cloud)
        detector.protocol, detector.ranges = "strict", detector.ranges.sqrt()
        maps = stretched(to_coordinates, coordinates, 2), stretched(to_bank, bank, 2)[nearest_patch]
        expected = share * maps[0] + (1 - share) * maps[1]
        np.testing.assert_allclose(published.point_scores.numpy(), expected, rtol=1e-3, atol=1e-3)
        apart = share * maps[0].max() + (1 - share) * maps[1].max()
        assert published.object_scores[0].item() == pytest.approx(apart, rel=1e-3)
        assert apart > expected.max()


@pytest.mark.usefixtures("open3d")
def test_a_training_cloud_that_does_not_fit_its_template_is_named(recwarn):
    clouds = (bracket(700, 0), bracket(700, 1), plate(700, 2))
    seen = [Seen(f"part/{i}", 0, cloud) for i, cloud in enumerate(clouds)]
    aligned(seen, RegistrationSettings(hypotheses=500))
    said = [str(entry.message) for entry in recwarn if "does not fit" in str(entry.message)]
    assert [text.split(":")[0] for text in said] == ["part/2"]


def test_reg3d_ad_s_units_are_distances_to_the_bank_that_is_searched(open3d):
    few = batch([bracket(700, 0), bracket(700, 1), plate(700, 2), plate(700, 3)], [0, 0, 1, 1])
    detector = fit(METHODS["reg3dad"](coreset_size=100), few)
    assert isinstance(detector, Reg3DAD)
    assert isinstance(detector.ranges, torch.Tensor)
    seen = [Seen(name, 0, cloud) for name, cloud in zip(few.sample_id[:2], list(few.clouds())[:2], strict=True)]
    placed = aligned(seen, detector.settings)
    every = (
        torch.cat([cloud.kept for cloud in placed]),
        torch.cat(list(detector.placed_tokens(placed, detector.templates.placing().templates[0]))),
    )
    for (low, high), rows, bank in zip(detector.ranges[0], every, (detector.coordinates, detector.bank), strict=True):
        among = np.sort(cdist(rows.numpy(), bank[:100].numpy()), axis=1)
        itself = among[:, 0] < 1e-5 * among.max()
        distance = np.where(itself, among[:, 1], among[:, 0])
        assert itself.sum() == 100
        assert (low.item(), high.item()) == pytest.approx((distance.min(), distance.max()), rel=1e-3)


@pytest.mark.slow
def test_templates_that_are_loaded_replace_those_in_use(open3d) -> None:
    two, clouds = fit(METHODS["template"]()), batch([bracket(1500, 11)])
    swapped = METHODS["template"]()
    swapped.configure(["bracket", "plate"])
    swapped.observe(batch([plate(1200, 3), plate(1200, 4)], [0, 1]))
    swapped.finish_pass()
    elsewhere = swapped.score(clouds).point_scores
    assert not torch.equal(two.score(clouds).point_scores, elsewhere)
    two.load_state_dict(swapped.state_dict())
    assert torch.equal(two.score(clouds).point_scores, elsewhere)
