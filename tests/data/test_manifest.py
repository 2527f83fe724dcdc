from __future__ import annotations

import json
from pathlib import Path

import pytest
from cloud_sets import write_anomaly_shapenet, write_real3d_ad

from anomaly3d.data.anomaly_shapenet import AnomalyShapeNet, index_anomaly_shapenet, parse_stem
from anomaly3d.data.folder import CloudFolder
from anomaly3d.data.index import CloudRecord
from anomaly3d.data.manifest import read_manifest
from anomaly3d.data.real3d_ad import Real3DAD, index_real3d_ad
from anomaly3d.errors import InputError


def entry(record: CloudRecord, root: Path) -> dict:
    """As MC3D-AD's file lists have it."""
    line = {
        "filename": record.path.relative_to(root).as_posix(),
        "label": record.label,
        "label_name": "defective" if record.label else "good",
        "clsname": record.category,
    }
    if record.mask_path:
        line["maskname"] = record.mask_path.relative_to(root).as_posix()
    return line


def write_manifest(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    return path


def test_a_list_of_all_files_is_the_layout(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path / "dataset" / "pcd")
    for split in ("train", "test"):
        records = index_anomaly_shapenet(root, (split,))
        path = write_manifest(tmp_path / f"{split}.json", [entry(record, root) for record in records])
        read = read_manifest(path, root, split, parse_stem)
        assert [(r.path, r.sample_id, r.label, r.defect, r.mask_path, r.source) for r in read] == [
            (r.path, r.sample_id, r.label, r.defect, r.mask_path, r.source) for r in records
        ]


def test_a_split_of_the_users_own(tmp_path: Path) -> None:
    """One cloud moved from test to train; works from the archive's top folder, and keeps sources."""
    root = write_real3d_ad(tmp_path / "Real3D-AD-PCD")
    train, test = (index_real3d_ad(root, (split,)) for split in ("train", "test"))
    moved = next(record for record in test if record.path.stem == "64_good")
    module = Real3DAD(
        tmp_path,
        train_manifest=write_manifest(tmp_path / "a", [entry(record, root) for record in [*train[:1], moved]]),
        test_manifest=write_manifest(tmp_path / "b", [entry(record, root) for record in test if record != moved]),
    )
    module.setup("fit")
    assert [record.path.stem for record in module.records("train")] == ["107_template", "64_good"]
    module.setup("test")
    assert {r.path.stem: (r.source, r.defect) for r in module.records("test")} == {
        r.path.stem: (r.source, r.defect) for r in test if r != moved
    }
    assert sum(batch.mask.sum().item() > 0 for batch in module.test_dataloader()) == 7


def test_a_list_alone_is_enough(tmp_path: Path) -> None:
    """Files that lie in no layout, with labels and categories from the lists."""
    root = write_anomaly_shapenet(tmp_path / "x", ("cap0",))
    test = root / "cap0" / "test"
    files = [*sorted((root / "cap0" / "train").iterdir()), test / "cap0_positive0.pcd", test / "cap0_bulge0.pcd"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(files):
        file.rename(flat / f"{i}.pcd")
    lines = [{"filename": f"{i}.pcd", "label": int(i == 3), "clsname": "part"} for i in range(4)]
    lines[3]["label_name"] = "dent"
    module = CloudFolder(
        flat,
        train_manifest=write_manifest(tmp_path / "a", lines[:2]),
        test_manifest=write_manifest(tmp_path / "b", lines[2:]),
    )
    module.setup(None)
    assert module.category_names == ("part",)
    assert [record.defect for record in module.records("test")] == ["good", "defective"]
    assert all(batch.mask is None for batch in module.test_dataloader())
    assert [batch.label.item() for batch in module.test_dataloader()] == [0, 1]
    module.test_manifest = write_manifest(tmp_path / "both", lines)
    module._records.pop("test")
    with pytest.raises(InputError, match=r"both: .*0\.pcd \(of 2\) is among the training clouds"):
        module.setup("test")
    module.test_manifest = write_manifest(tmp_path / "twice", [lines[2], lines[2]])
    with pytest.raises(InputError, match=r"2\.pcd: listed 2 times"):
        module.setup("test")


def test_categories_choose_among_the_lists(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path / "set")
    path = write_manifest(tmp_path / "a", [entry(record, root) for record in index_anomaly_shapenet(root, ("train",))])
    module = AnomalyShapeNet(root, categories=["cup1"], train_manifest=path)
    module.setup("fit")
    assert {record.category for record in module.records("train")} == {"cup1"} == set(module.category_names)
    with pytest.raises(InputError, match="Known categories: cap0, cup1"):
        AnomalyShapeNet(root, categories=["jar"], train_manifest=path).setup("fit")


def test_tested_categories_must_be_trained_ones(tmp_path: Path) -> None:
    root = write_anomaly_shapenet(tmp_path / "set")
    records = index_anomaly_shapenet(root)
    train = [entry(r, root) for r in records if r.split == "train" and r.category == "cap0"]
    test = [entry(r, root) for r in records if r.split == "test"]
    module = AnomalyShapeNet(
        root,
        train_manifest=write_manifest(tmp_path / "a", train),
        test_manifest=write_manifest(tmp_path / "b", test),
    )
    with pytest.raises(InputError, match="test clouds of cup1, which have no training clouds"):
        module.setup("test")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not a JSON object"),
        ('{"filename": "cap0/train/cap0_template0.pcd"}', "line 2: .*clsname"),
        ('["a"]', "line 2: not a JSON object"),
        ('{"filename": 7, "label": 0, "clsname": "cap0"}', "line 2: .* 7 is no file name"),
        (
            '{"filename": "a.pcd", "label": 0, "clsname": "cap0"}',
            r"line 2: .*a\.pcd does not exist.*relative to `root`",
        ),
        ('{"filename": "cap0/train/cap0_template0.pcd", "label": 2, "clsname": "cap0"}', "line 2: label 2"),
        ('{"filename": "cap0/train/cap0_template0.pcd", "label": 1, "clsname": "cap0"}', "Training clouds are normal"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    root = write_anomaly_shapenet(tmp_path / "set", ("cap0",))
    path = tmp_path / "a"
    path.write_text('{"filename": "cap0/train/cap0_template0.pcd", "label": 0, "clsname": "cap0"}\n' + line + "\n")
    with pytest.raises(InputError, match=says):
        read_manifest(path, root, "train", parse_stem)


def test_missing_and_empty_lists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file list"):
        read_manifest(tmp_path / "a", tmp_path, "train", parse_stem)
    (tmp_path / "a").write_text("\n")
    with pytest.raises(InputError, match="an empty file list"):
        read_manifest(tmp_path / "a", tmp_path, "train", parse_stem)
