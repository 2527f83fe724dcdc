"""The data set on disk: layout, labels, seeds, resumption, refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import auto_cli

from anomaly3d.data.anomaly_shapenet import index_anomaly_shapenet
from anomaly3d.data.io import read_points
from anomaly3d.data.masks import match_truth, read_truth
from anomaly3d.data.synthetic import generate as module
from anomaly3d.data.synthetic.cloud import SHARE, CloudPlan, ScanSettings, child_seed, make_cloud
from anomaly3d.data.synthetic.generate import generate
from anomaly3d.data.synthetic.scan import Seen, draw_pose, thin
from anomaly3d.data.synthetic.surface import Surface
from anomaly3d.errors import InputError

SMALL = {"templates": 1, "normals": 1, "defects_per_kind": 1, "points": (1000, 1500)}


def _hashes(root: Path, under: str = "") -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / under).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("made") / "set", ["gear", "wrench"], seed=7, **SMALL)


def test_layout_is_read_back_with_exact_labels(small: Path) -> None:
    records = index_anomaly_shapenet(small)
    assert {record.category for record in records} == {"gear", "wrench"}
    assert sorted(record.path.stem for record in records if record.category == "gear") == [
        f"gear_{name}0" for name in ("bending", "broken", "bulge", "concavity", "crak", "hole", "positive", "template")
    ]
    listed = {cloud["file"]: cloud for cloud in json.loads((small / "provenance.json").read_text())["clouds"]}
    assert len(listed) == len(records) == 16
    for record in records:
        points = read_points(record.path)
        entry = listed[str(record.path.relative_to(small))]
        assert len(points) == entry["points"]
        assert 1000 <= len(points) <= 1500
        assert b"SIZE 4 4 4" in record.path.read_bytes()[:200]
        if record.label == 0:
            assert record.mask_path is None
            assert entry["kind"] == "good"
            continue
        assert record.mask_path is not None
        assert len(record.mask_path.read_text().splitlines()[0].split(",")) == 4
        mask = match_truth(read_truth(record.mask_path), record.mask_path, points, np.ones(len(points), dtype=bool))
        assert SHARE[0] <= mask.mean() <= SHARE[1]
        assert mask.mean() == pytest.approx(entry["labelled"], abs=1e-6)
        assert entry["defect"]


def test_no_trace_of_the_work_is_left(small: Path) -> None:
    assert sorted(path.name for path in small.iterdir()) == ["gear", "provenance.json", "wrench"]
    assert not small.with_name("set.partial").exists()


def test_bytes_do_not_depend_on_what_else_is_made(small: Path, tmp_path: Path) -> None:
    alone = generate(tmp_path / "alone", ["wrench"], seed=7, **{**SMALL, "normals": 2}, kinds=["hole", "bulge"])
    expected = _hashes(small)
    made = _hashes(alone, "wrench")
    shared = made.keys() & expected.keys()
    assert "wrench/GT/wrench_hole0.txt" in shared
    assert len(shared) == 6
    assert all(made[name] == expected[name] for name in shared)
    other = generate(tmp_path / "other", ["wrench"], seed=8, **SMALL, kinds=["bulge"])
    assert all(value not in expected.values() for value in _hashes(other, "wrench").values())


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(small: Path, tmp_path: Path) -> None:
    assert _hashes(generate(tmp_path / "set", ["gear", "wrench"], seed=7, **SMALL, workers=2)) == _hashes(small)


def test_goes_on_after_a_kill_with_the_same_result(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def dies(plan: CloudPlan, settings: ScanSettings, seed: int):
        if len(made) == 10:
            raise KeyboardInterrupt
        made.append(plan.stem)
        return make_cloud(plan, settings, seed)

    monkeypatch.setattr(module, "make_cloud", dies)
    root = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        generate(root, ["gear", "wrench"], seed=7, **SMALL)
    assert not root.exists()

    def counts(plan: CloudPlan, settings: ScanSettings, seed: int):
        made.append(plan.stem)
        return make_cloud(plan, settings, seed)

    monkeypatch.setattr(module, "make_cloud", counts)
    with pytest.raises(InputError, match="other arguments"):
        generate(root, ["gear", "wrench"], seed=8, **SMALL)
    generate(root, ["gear", "wrench"], seed=7, **SMALL)
    assert len(made) == len(set(made)) == 16
    assert _hashes(root) == _hashes(small)


def test_finished_set_is_left_alone_and_other_folders_are_refused(small: Path, tmp_path: Path) -> None:
    before = _hashes(small)
    assert generate(small, ["gear", "wrench"], seed=7, **SMALL) == small
    assert _hashes(small) == before
    with pytest.raises(InputError, match=r"other arguments \(noise\)"):
        generate(small, ["gear", "wrench"], seed=7, noise=0.002, **SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        generate(tmp_path, ["gear"], **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ({"categories": ["teapot"]}, "categories: teapot"),
        ({"kinds": ["dent"]}, "kinds: dent"),
        ({"points": 10}, "points"),
        ({"points": (3000, 2000)}, "points"),
        ({"noise": -1.0}, "noise"),
        ({"normals": -1}, "normals"),
        ({"workers": 0}, "workers"),
        ({"view": "double"}, "view"),
        ({"pose": "upright"}, "pose"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, argument: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        generate(tmp_path / "set", **argument)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path) -> None:
    args = ["--root", str(tmp_path / "set"), "--categories", "[shaft]", "--points", "[1000, 1200]", "--normals", "0"]
    args += ["--templates", "1", "--kinds", "[bulge]", "--defects_per_kind", "1", "--pose", "arbitrary"]
    assert auto_cli(generate, args=args, as_positional=False) == tmp_path / "set"
    assert len(list((tmp_path / "set").rglob("*.pcd"))) == 2


@pytest.mark.parametrize("kind", [None, "bulge", "broken"])
def test_number_of_points_noise_and_pose_are_drawn_without_the_label(kind) -> None:
    settings = ScanSettings((1000, 3000), "full", 0.001, "small")
    normal = make_cloud(CloudPlan("clamp", "test", "x", None), settings, 3)
    other = make_cloud(CloudPlan("clamp", "test", "x", kind), settings, 3)
    assert len(other.xyz) == len(normal.xyz)
    assert other.xyz.dtype == np.float32
    assert np.isfinite(other.xyz).all()
    assert other.mask.any() == (kind is not None)


def test_exact_number_of_points() -> None:
    settings = ScanSettings(2345, "full", 0.0, "aligned")
    assert len(make_cloud(CloudPlan("pulley", "train", "template0", None), settings, 0).xyz) == 2345


@pytest.mark.parametrize("kind", [None, "concavity"])
def test_single_view_shows_one_side_only(kind) -> None:
    settings = ScanSettings(2000, "single", 0.0, "aligned")
    cloud = make_cloud(CloudPlan("flange", "test", "y", kind), settings, 1)
    camera = np.array(cloud.record["camera"])
    assert np.linalg.norm(camera) == pytest.approx(1, abs=1e-4)
    # Nothing is behind anything: along the camera each pixel of a coarse image holds one layer of surface.
    side = np.linalg.svd(camera[None])[2][1:]
    pixel = np.unique((cloud.xyz @ side.T // 6).astype(int), axis=0, return_inverse=True)[1].ravel()
    depth = cloud.xyz @ camera
    spread = np.array([np.ptp(depth[pixel == p]) for p in np.unique(pixel)])
    assert np.quantile(spread, 0.5) < 0.1 * cloud.record["diagonal_mm"]
    full = make_cloud(CloudPlan("flange", "train", "y", None), settings, 1)
    assert full.record["camera"] is None


@pytest.mark.slow
def test_views_of_normal_and_defective_parts_come_from_the_same_draw() -> None:
    """With the phantom's kind equal to the real kind, normal and defective part are seen from the same side."""
    settings = ScanSettings(1500, "single", 0.0, "aligned")
    same = 0
    for i in range(4):
        normal = make_cloud(CloudPlan("housing", "test", f"v{i}", None), settings, 0).record["camera"]
        for kind in ("bulge", "concavity", "hole", "broken", "bending", "crak"):
            same += normal == make_cloud(CloudPlan("housing", "test", f"v{i}", kind), settings, 0).record["camera"]
    assert same >= 3


def test_thinning_follows_the_density_without_repetition() -> None:
    density = np.repeat([0.0, 1.0, 3.0], 4000)
    chosen = np.concatenate([thin(density, 300, np.random.default_rng(seed)) for seed in range(20)])
    groups = np.bincount(chosen // 4000, minlength=3)
    assert groups[0] == 0
    assert groups[2] / groups[1] == pytest.approx(3, rel=0.1)
    one = thin(density, 3000, np.random.default_rng(0))
    assert len(np.unique(one)) == 3000
    with pytest.raises(ValueError, match="8000 points are seen"):
        thin(density, 8001, np.random.default_rng(0))


def test_poses_keep_their_limits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rotation, shift = draw_pose("small", 10.0, rng)
        assert rotation.magnitude() <= np.deg2rad(5) + 1e-9
        assert np.abs(shift).max() <= 0.1
    large = [draw_pose("arbitrary", 10.0, rng)[0].magnitude() for _ in range(50)]
    assert np.median(large) > 1.5
    rotation, shift = draw_pose("aligned", 10.0, rng)
    assert rotation.magnitude() == 0
    assert not shift.any()


def test_scan_thins_out_slanted_surface() -> None:
    rng = np.random.default_rng(0)
    flat = np.column_stack([rng.uniform(0, 1, (5000, 2)), np.zeros(5000)])
    surface = Surface(flat, np.tile([0.0, 0.0, 1.0], (5000, 1)), 1.0)
    tilted = Seen.along(surface, np.array([np.sqrt(0.75), 0.0, 0.5]), surface.spacing)
    assert (tilted.density > 0).mean() > 0.99
    assert np.allclose(tilted.density[tilted.density > 0], 0.5)


def test_child_seeds_are_fixed_for_ever() -> None:
    """Python's hash() differs between processes; these numbers may only change with the generator's version."""
    assert child_seed(0, "gear", "test", "hole0").generate_state(1)[0] == 2887112302
    assert child_seed(0, "a", "b").entropy != child_seed(0, "ab").entropy
