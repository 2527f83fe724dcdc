from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cloud_sets import sphere, write_anomaly_shapenet, write_truth

from anomaly3d.data.anomaly_shapenet import index_anomaly_shapenet
from anomaly3d.data.dataset import Cloud, CloudCache, CloudDataset, CloudReader, Sample, collate
from anomaly3d.data.index import CloudRecord
from anomaly3d.data.masks import TruthMismatch
from anomaly3d.data.pcd import write_pcd
from anomaly3d.errors import InputError


@pytest.fixture
def defective(tmp_path: Path) -> CloudRecord:
    root = write_anomaly_shapenet(tmp_path / "set", ("cap0",))
    return next(record for record in index_anomaly_shapenet(root) if record.label)


def raw(record: CloudRecord) -> np.ndarray:
    return np.frombuffer(record.path.read_bytes()[-600 * 12 :], np.float32).reshape(-1, 3)


def test_points_and_mask_follow_the_file(defective: CloudRecord) -> None:
    cloud = CloudReader()(defective)
    points = raw(defective)
    np.testing.assert_allclose(cloud.xyz, points - points.mean(axis=0, dtype=np.float64), atol=1e-6)
    np.testing.assert_array_equal(cloud.mask, points[:, 2] > 9)


def test_dropped_points_take_their_labels_with_them(defective: CloudRecord) -> None:
    points = raw(defective).copy()
    anomalous = np.flatnonzero(points[:, 2] > 9)[:2]
    points[anomalous] = np.nan
    write_pcd(defective.path, points)
    with pytest.warns(UserWarning, match="2 of 600"):
        cloud = CloudReader()(defective)
    np.testing.assert_array_equal(cloud.mask, np.delete(points[:, 2] > 9, anomalous))
    assert len(cloud.xyz) == 598
    with pytest.raises(InputError, match="strict_io"):
        CloudReader(strict_io=True)(defective)


def test_truth_of_another_cloud_is_an_error_or_the_cloud(defective: CloudRecord, rng: np.random.Generator) -> None:
    assert defective.mask_path is not None
    other = sphere(rng, 500)
    write_truth(defective.mask_path, other, other[:, 0] > 9)
    with pytest.raises(TruthMismatch, match="on_truth_mismatch") as raised:
        CloudReader()(defective)
    assert str(defective.path) in str(raised.value)
    with pytest.warns(UserWarning, match="Its rows are used as the cloud in place of"):
        cloud = CloudReader(on_truth_mismatch="use_truth")(defective)
    np.testing.assert_allclose(cloud.xyz, other - other.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(cloud.mask, other[:, 0] > 9)
    # Labels without places cannot replace the cloud.
    np.savetxt(defective.mask_path, np.zeros(500), fmt="%d")
    with pytest.raises(TruthMismatch, match="500 labels for a cloud of 600"):
        CloudReader(on_truth_mismatch="use_truth")(defective)


def test_clouds_with_few_points_are_refused(defective: CloudRecord) -> None:
    with pytest.raises(InputError, match=r"600 points, fewer than 700.*min_points"):
        CloudReader(min_points=700)(defective)


@pytest.mark.parametrize("far", [1e6, 1e12, 1e30])
def test_a_point_out_of_all_proportion_is_named(defective: CloudRecord, far: float) -> None:
    xyz = raw(defective)
    cloud = replace(defective, path=defective.path.with_suffix(".npy"), mask_path=None)
    np.save(cloud.path, np.vstack([xyz, 50 * np.abs(xyz).max(0)]))
    CloudReader()(cloud)
    np.save(cloud.path, np.vstack([xyz, np.full(3, far)]))
    with pytest.raises(InputError, match=r"the point at .* lies") as raised:
        CloudReader()(cloud)
    assert str(raised.value).startswith(str(cloud.path))


def test_samples_and_batches(tmp_path: Path) -> None:
    records = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path), ("test",))
    dataset = CloudDataset(records, ["cap0", "cup1"], CloudReader())
    batch = collate([dataset[i] for i in range(len(dataset))])
    assert batch.category is not None
    assert batch.label is not None
    assert batch.mask is not None
    assert batch.xyz.dtype == torch.float32
    assert batch.sizes() == [600] * 8
    assert batch.sample_id == tuple(record.sample_id for record in records)
    assert batch.category.tolist() == [0] * 4 + [1] * 4
    assert batch.label.tolist() == [record.label for record in records]
    for i, mask in enumerate(batch.split(batch.mask)):
        assert mask.any().item() == bool(batch.label[i])
    for cloud in batch.clouds():
        torch.testing.assert_close(cloud.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


def test_what_is_unknown_is_none(tmp_path: Path) -> None:
    records = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path), ("test",))
    without = [replace(r, mask_path=None) if r.path.stem == "cap0_crak1" else r for r in records]
    dataset = CloudDataset(without, ["cup1"], CloudReader())
    # One defective cloud without truth: its category's clouds go without, normal ones as well; the others keep theirs.
    assert all(dataset[i].cloud.mask is None for i in range(4))
    assert all(dataset[i].cloud.mask is not None for i in range(4, 8))
    assert [dataset[i].category for i in (0, 7)] == [None, 0]
    batch = collate([dataset[0], dataset[7]])
    assert batch.category is None
    assert batch.mask is not None
    assert batch.masked is not None
    assert batch.masked.tolist() == [False, True]
    assert not batch.split(batch.mask)[0].any()
    assert torch.equal(batch.split(batch.mask)[1], torch.from_numpy(dataset[7].cloud.mask))
    assert collate([dataset[0], dataset[1]]).mask is None
    assert collate([dataset[6], dataset[7]]).masked is None
    assert batch.label is not None
    assert batch.label.tolist() == [records[0].label, records[7].label]
    unlabelled = CloudDataset([replace(records[0], label=-1)], ["cap0"], CloudReader())
    assert collate([unlabelled[0]]).label is None


def test_one_sample_id_for_two_clouds_is_refused(tmp_path: Path) -> None:
    records = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path), ("test",))
    twin = replace(records[0], path=tmp_path / "twin.pcd", name=records[0].path.stem)
    with pytest.raises(InputError, match=r"twin\.pcd: one sample id"):
        CloudDataset([*records, twin], ["cap0", "cup1"], CloudReader())
    with pytest.raises(InputError, match=r"\.pcd: listed 2 times"):
        CloudDataset([*records, records[0]], ["cap0", "cup1"], CloudReader())


def test_cache_keeps_what_its_budget_holds() -> None:
    made: list[str] = []

    def cloud(name: str) -> Cloud:
        made.append(name)
        return Cloud(np.zeros((100, 3), np.float32), np.zeros(100, bool))

    cache = CloudCache(budget=2 * 1300)
    for _ in range(3):
        for name in "abc":
            cache.get(name, lambda name=name: cloud(name))
    assert made == ["a", "b", "c", "c", "c"]
    assert cache.used == 2600


def test_cached_clouds_are_read_once(tmp_path: Path) -> None:
    records = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path), ("train",))
    kept = CloudDataset(records, ["cap0", "cup1"], CloudReader(), cache_bytes=10**6)
    first: Sample = kept[0]
    records[0].path.unlink()
    assert kept[0].cloud.xyz is first.cloud.xyz
    with pytest.raises(InputError, match="no such file"):
        CloudDataset(records, ["cap0", "cup1"], CloudReader())[0]
