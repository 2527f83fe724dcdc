from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cloud_sets import write_anomaly_shapenet
from scipy.spatial import KDTree

from anomaly3d.data.anomaly_shapenet import index_anomaly_shapenet
from anomaly3d.data.dataset import CloudReader
from anomaly3d.data.index import CloudRecord
from anomaly3d.data.pcd import write_pcd
from anomaly3d.data.validation import HOLD_OUT_FROM, KINDS, ValidationDataset, ViewSettings, hold_out, make_view
from anomaly3d.errors import InputError


def body(rng: np.random.Generator, count: int = 3000) -> np.ndarray:
    """A box with a peg: edges and a part that protrudes, so that every kind of defect finds a place."""
    import trimesh

    box = trimesh.creation.box(extents=(10, 8, 4))
    peg = trimesh.creation.cylinder(radius=1, height=6).apply_translation([2, 1, 5])
    mesh = trimesh.boolean.union([box, peg])
    return trimesh.sample.sample_surface(mesh, count, seed=int(rng.integers(1000)))[0].astype(np.float32)


@pytest.fixture
def records(tmp_path: Path, rng: np.random.Generator) -> list[CloudRecord]:
    records = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path), ("train",))
    for record in records:
        write_pcd(record.path, body(rng))
    return records


def dataset(records: list[CloudRecord], normal: int = 2, defective: int = 2, seed: int = 0) -> ValidationDataset:
    settings = ViewSettings(points=2500)
    return ValidationDataset(records, ["cap0", "cup1"], CloudReader(), normal, defective, settings, seed)


def test_normal_and_defective_clouds_of_every_category(records: list[CloudRecord]) -> None:
    split = dataset(records)
    samples = [split[i] for i in range(len(split))]
    assert [(s.category, s.label) for s in samples] == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (1, 1), (1, 1)]
    assert len({sample.sample_id for sample in samples}) == 8
    # What is drawn together in the bootstrap: views of one scan.
    sources = split.sources()
    assert sources.keys() == {sample.sample_id for sample in samples}
    assert set(sources.values()) <= {record.source for record in records}
    assert len(set(sources.values())) == len({record.source for record in records})
    for sample in samples:
        assert sample.cloud.mask is not None
        assert sample.cloud.xyz.dtype == np.float32
        assert sample.cloud.xyz.shape == (len(sample.cloud.mask), 3)
        np.testing.assert_allclose(sample.cloud.xyz.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
        assert sample.cloud.mask.any() == bool(sample.label)
        assert sample.cloud.mask.mean() < 0.2


def test_the_seed_decides_everything(records: list[CloudRecord]) -> None:
    first, again, other = dataset(records), dataset(records), dataset(records, seed=1)
    for i in (5, 2, 0):  # the order of access does not matter
        np.testing.assert_array_equal(again[i].cloud.xyz, first[i].cloud.xyz)
        np.testing.assert_array_equal(again[i].cloud.mask, first[i].cloud.mask)
        assert not np.array_equal(other[i].cloud.xyz[:50], first[i].cloud.xyz[:50])


def test_a_category_has_the_same_clouds_whatever_the_others(records: list[CloudRecord]) -> None:
    both = dataset(records)
    cup = [record for record in records if record.category == "cup1"]
    alone = ValidationDataset(cup, ["cup1"], CloudReader(), 2, 2, ViewSettings(points=2500), 0)
    for i in range(4):
        np.testing.assert_array_equal(alone[i].cloud.xyz, both[4 + i].cloud.xyz)


def test_a_view_is_the_surface_at_other_points(rng: np.random.Generator) -> None:
    xyz = body(rng, 8000)
    view = make_view(xyz, None, rng, ViewSettings(points=3000, rotation=0.0)).xyz
    assert len(view) == 3000
    spacing = KDTree(xyz).query(xyz, 2)[0][:, 1].mean()
    distance = KDTree(xyz - xyz.mean(axis=0)).query(view)[0]
    # Centring differs by the mean of the chosen points: a few hundredths.
    assert np.median(distance) > 0.05 * spacing
    assert distance.max() < 6 * spacing


def test_rotation_is_rigid_and_bounded(rng: np.random.Generator) -> None:
    xyz = body(rng)
    for degrees, least in ((5.0, 0.0), (180.0, 5.0)):
        angles = []
        for seed in range(5):
            still, turned = (
                make_view(xyz, None, np.random.default_rng(seed), ViewSettings(points=1000, rotation=angle)).xyz
                for angle in (0.0, degrees)
            )
            u, _, vt = np.linalg.svd(still.T.astype(np.float64) @ turned)
            rotation = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
            np.testing.assert_allclose(still @ rotation, turned, atol=1e-4)
            angles.append(np.rad2deg(np.arccos((np.trace(rotation) - 1) / 2)))
        assert max(angles) <= degrees + 1e-3
        assert max(angles) > least


@pytest.mark.parametrize("kind", KINDS)
def test_defects_change_the_labelled_points_only(kind, rng: np.random.Generator) -> None:
    xyz = body(rng, 5000)
    settings = ViewSettings(points=4000, rotation=0.0)
    normal = make_view(xyz, None, np.random.default_rng(3), settings)
    defective = make_view(xyz, kind, np.random.default_rng(3), settings)
    assert defective.mask is not None
    assert 0.005 < defective.mask.mean() < 0.15
    # Both clouds come from one draw; they differ by their means and by the defect.
    shift = np.median(defective.xyz[:50] - normal.xyz[:50], axis=0)
    diagonal = np.linalg.norm(np.ptp(xyz, axis=0))
    distance = KDTree(normal.xyz).query(defective.xyz - shift)[0] / diagonal
    assert distance[~defective.mask].max() < 0.01


def test_single_views_are_one_sided(rng: np.random.Generator) -> None:
    normals = rng.normal(size=(6000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    view = make_view((10 * normals).astype(np.float32), None, rng, ViewSettings(2000, "single", 180.0)).xyz
    assert 800 < len(view) < 2500
    # Half a sphere is half as deep as it is wide.
    extents = np.sqrt(np.linalg.eigvalsh(np.cov(view.T)))
    assert extents[0] < 0.7 * extents[1]


def test_clouds_are_held_out_where_there_are_enough(records: list[CloudRecord]) -> None:
    many = [replace(records[0], name=f"x{i}", source=f"x{i}") for i in range(HOLD_OUT_FROM)]
    few = [replace(records[-1], name=f"y{i}", source=f"y{i}") for i in range(HOLD_OUT_FROM - 1)]
    train, held = hold_out(many + few, 0.2, seed=0)
    names = [{record.name for record in part} for part in (train, held)]
    assert {name for name in names[0] & names[1]} == {record.name for record in few}
    assert len(names[1] - names[0]) == 2
    assert names[0] | names[1] == {record.name for record in many + few}
    assert hold_out(many + few, 0.2, seed=0) == (train, held)
    assert hold_out(many + few, 0.2, seed=1) != (train, held)
    assert hold_out(many, 0.0, seed=0) == (many, many)
    copies = [replace(record, name=f"{record.name}_copy") for record in many]
    train, held = hold_out(many + copies, 0.2, seed=0)
    assert not {record.source for record in train} & {record.source for record in held}
    assert len(held) == 4


def test_a_single_view_is_not_taken_from_where_nothing_shows(rng: np.random.Generator) -> None:
    plate = np.column_stack([rng.uniform(-1, 1, (4000, 2)), np.zeros(4000)])
    bowl = plate - [0, 0, 1] * (plate[:, :2] ** 2).sum(1)[:, None]  # open, so that its normals point one way
    for seed in range(20):
        view = make_view(bowl, None, np.random.default_rng(seed), ViewSettings(2000, "single", 180.0))
        assert len(view.xyz) >= 300
    blind = lambda points, *_, **__: np.zeros(len(points), dtype=bool)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomaly3d.data.synthetic.visibility.visible_points", blind)
        with pytest.raises(InputError, match="none of 20 cameras sees 10% of its points"):
            make_view(bowl, None, rng, ViewSettings(2000, "single", 180.0))


def test_clouds_too_small_for_a_defect_say_what_to_set(records: list[CloudRecord], rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="val_defective"):
        make_view(body(rng, 300), "bulge", rng, ViewSettings())
    with pytest.raises(InputError, match="jar: no training cloud"):
        ValidationDataset(records, ["cap0", "jar"], CloudReader(), 1, 1, ViewSettings(), 0)


def test_no_point_of_a_view_is_one_of_the_cloud(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly3d.data.validation.centred", lambda xyz: xyz)
    xyz = body(rng).astype(np.float64)
    view = make_view(xyz, None, rng, ViewSettings(rotation=0.0))
    assert len(view.xyz) == len(xyz) * 4 // 5
    assert KDTree(xyz).query(view.xyz)[0].min() > 0
