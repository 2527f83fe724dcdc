"""Anomaly-ShapeNet's and Real3D-AD's indexes: what a stem means, and where things are looked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from cloud_sets import write_anomaly_shapenet, write_real3d_ad

from anomaly3d.data import anomaly_shapenet, real3d_ad
from anomaly3d.data.anomaly_shapenet import index_anomaly_shapenet
from anomaly3d.data.real3d_ad import index_real3d_ad
from anomaly3d.errors import InputError

LAYOUTS = [(write_anomaly_shapenet, index_anomaly_shapenet), (write_real3d_ad, index_real3d_ad)]


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("cap0_positive12", ("good", "cap0_positive12")),
        ("cap0_template3", ("good", "cap0_template3")),
        ("cap0_crak0", ("crack", "cap0_crak0")),
        ("cap0_Bulge7", ("bulge", "cap0_Bulge7")),
        ("fan-nozzle_revision0", ("revision", "fan-nozzle_revision0")),
        ("good_cable_cover_hole10", ("hole", "good_cable_cover_hole10")),
        ("positive0_broken1", ("broken", "positive0_broken1")),
    ],
)
def test_anomaly_shapenet_stems(stem: str, expected: tuple[str, str]) -> None:
    assert anomaly_shapenet.parse_stem(stem) == expected


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("64_good", ("good", "64")),
        ("64_good_cut", ("good", "64")),
        ("64_good_copy", ("good", "64")),
        ("64_bulge", ("bulge", "64")),
        ("64_bulge_cut", ("bulge", "64")),
        ("9_sink_copy", ("sink", "9")),
        ("9_sinks", ("sinks", "9")),
        ("9_hybrid", ("hybrid", "9")),
        ("107_template", ("good", "107")),
        ("107_Prototype", ("good", "107")),
    ],
)
def test_real3d_stems(stem: str, expected: tuple[str, str]) -> None:
    assert real3d_ad.parse_stem(stem) == expected


def test_anomaly_shapenet_records(tmp_path: Path) -> None:
    records = index_anomaly_shapenet(write_anomaly_shapenet(tmp_path))
    assert len(records) == len({record.sample_id for record in records}) == 12
    cap = {record.path.stem: record for record in records if record.category == "cap0"}
    assert (cap["cap0_positive0"].label, cap["cap0_positive0"].defect) == (0, "good")
    assert (cap["cap0_crak1"].label, cap["cap0_crak1"].defect) == (1, "crack")
    assert cap["cap0_crak1"].mask_path == tmp_path / "cap0" / "GT" / "cap0_crak1.txt"
    assert cap["cap0_positive0"].mask_path is None
    assert cap["cap0_template0"].sample_id == "cap0/train/cap0_template0"
    assert [record.sample_id for record in records] == sorted(
        (record.sample_id for record in records),
        key=lambda name: (name.split("/")[0], name.split("/")[1] == "test", name),
    )


def test_real3d_clouds_of_one_scan_share_a_source(tmp_path: Path) -> None:
    records = index_real3d_ad(write_real3d_ad(tmp_path), ("test",))
    sources = {record.path.stem: record.source for record in records}
    assert sources["65_bulge"] == sources["65_bulge_cut"] != sources["66_sink"] == sources["66_sink_copy"]
    assert len(set(sources.values())) == 7
    assert {record.defect for record in records} == {"good", "bulge", "sink", "bulges", "sinks", "hybrid"}
    assert all(record.label == (record.defect != "good") == (record.mask_path is not None) for record in records)
    train = index_real3d_ad(tmp_path, ("train",))
    # Template 64 is not test scan 64.
    assert {record.source for record in train}.isdisjoint(sources.values())


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
@pytest.mark.parametrize("parent", ["temp", "template", "good/test", "positive", "defective_bulge"])
def test_labels_do_not_come_from_the_path(tmp_path: Path, write: Callable, index: Callable, parent: str) -> None:
    plain = index(write(tmp_path / "x"))
    named = index(write(tmp_path / parent / "x"))
    assert [(r.sample_id, r.label, r.source) for r in named] == [(r.sample_id, r.label, r.source) for r in plain]
    assert 0 < sum(record.label for record in named) < len(named)


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
@pytest.mark.parametrize("truth", ["GT", "gt", "Gt"])
def test_truth_folder_in_any_case(tmp_path: Path, write: Callable, index: Callable, truth: str) -> None:
    records = index(write(tmp_path, truth=truth), ("test",))
    assert all(record.mask_path.parent.name == truth for record in records if record.label)


@pytest.mark.parametrize(
    ("write", "index", "nested"),
    [(*LAYOUTS[0], "dataset/pcd"), (*LAYOUTS[0], "pcd"), (*LAYOUTS[1], "Real3D-AD-PCD")],
)
def test_root_of_the_archive_will_do(tmp_path: Path, write: Callable, index: Callable, nested: str) -> None:
    write(tmp_path / nested)
    assert [r.sample_id for r in index(tmp_path)] == [r.sample_id for r in index(tmp_path / nested)]
    assert len(index(str(tmp_path))) > 0


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_roots_that_are_wrong_say_what_to_set(tmp_path: Path, write: Callable, index: Callable) -> None:
    root = write(tmp_path / "set")
    category = next(child for child in sorted(root.iterdir()))
    with pytest.raises(InputError, match=rf"set `root` to {root} and `categories` to \[{category.name}\]".capitalize()):
        index(category)
    with pytest.raises(InputError, match=r"found: set"):
        index(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        index(tmp_path / "nowhere")
    archive = tmp_path / "set.rar"
    archive.write_bytes(b"Rar!")
    with pytest.raises(InputError, match="Unpack the archive"):
        index(archive)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found: nothing"):
        index(tmp_path / "empty")


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_unknown_category_lists_the_known_ones(tmp_path: Path, write: Callable, index: Callable) -> None:
    write(tmp_path, ("cap0", "cup1"))
    assert {record.category for record in index(tmp_path, categories=["cup1"])} == {"cup1"}
    with pytest.raises(InputError, match=r"jar not in .*Known categories: cap0, cup1"):
        index(tmp_path, categories=["cap0", "jar"])
    with pytest.raises(InputError, match="empty list"):
        index(tmp_path, categories=[])


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_missing_truth_of_a_defective_cloud(tmp_path: Path, write: Callable, index: Callable) -> None:
    write(tmp_path)
    victim = next(record for record in index(tmp_path) if record.label).mask_path
    victim.unlink()
    with pytest.raises(InputError, match=rf"{victim} is missing"):
        index(tmp_path)
    # Training needs no truth.
    assert len(index(tmp_path, ("train",))) >= 2


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_truth_without_a_cloud_is_told(tmp_path: Path, write: Callable, index: Callable) -> None:
    root = write(tmp_path)
    truth = next(path for path in root.rglob("*.txt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index(root, ("test",))
    cloud = next(path for path in root.rglob(f"{truth.stem}.pcd"))
    cloud.unlink()
    with pytest.warns(UserWarning, match=rf"{truth.name}: ground truth without a cloud .*\(1 of \d+ files\)"):
        index(root, ("test",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index(root, ("train",))


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_truth_may_have_its_suffix_in_capitals(tmp_path: Path, write: Callable, index: Callable) -> None:
    root = write(tmp_path)
    before = [record.sample_id for record in index(root, ("test",)) if record.label]
    for path in sorted(root.rglob("*.txt")):
        path.rename(path.with_suffix(".TXT"))
    records = [record for record in index(root, ("test",)) if record.label]
    assert [record.sample_id for record in records] == before
    assert all(record.mask_path.suffix == ".TXT" for record in records)


@pytest.mark.parametrize(
    ("write", "index", "old", "new"),
    [(*LAYOUTS[0], "cap0_bulge0", "cap0_revision0"), (*LAYOUTS[1], "67_bulges", "67_dent")],
)
def test_unknown_kind_is_a_defect_if_it_has_truth(
    tmp_path: Path, write: Callable, index: Callable, old: str, new: str
) -> None:
    write(tmp_path)
    cloud = next(tmp_path.rglob(f"{old}.pcd"))
    truth = next(tmp_path.rglob(f"{old}.txt"))
    cloud.rename(cloud.with_stem(new))
    with pytest.raises(InputError, match=r"says it is defective.*if the cloud is normal, rename it"):
        index(tmp_path)
    truth.rename(truth.with_stem(new))
    record = next(record for record in index(tmp_path) if record.path.stem == new)
    assert (record.label, record.defect) == (1, new.split("_")[1].rstrip("0"))


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_a_defective_training_cloud_is_refused(tmp_path: Path, write: Callable, index: Callable) -> None:
    write(tmp_path)
    path = next(record for record in index(tmp_path) if record.label).path
    path.rename(path.parent.parent / "train" / path.name)
    with pytest.raises(InputError, match="among the training clouds"):
        index(tmp_path, ("train",))


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_leftovers_of_archive_tools_are_no_clouds(tmp_path: Path, write: Callable, index: Callable) -> None:
    before = index(write(tmp_path))
    folder = before[0].path.parent
    (folder / f"._{before[0].path.name}").write_bytes(b"Mac")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True)
    (tmp_path / ".cache" / "train").mkdir(parents=True)
    (folder / "notes.txt").write_text("1 2 3 0")
    assert index(tmp_path) == before


@pytest.mark.parametrize(("write", "index"), LAYOUTS)
def test_training_index_does_not_open_the_test_folder(
    tmp_path: Path, write: Callable, index: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    listed: list[str] = []
    real = Path.iterdir

    def spy(self: Path):
        listed.append(self.name)
        return real(self)

    monkeypatch.setattr(Path, "iterdir", spy)
    index(tmp_path, ("train",))
    assert "train" in listed
    assert not {"test", "GT", "gt"} & set(listed)
