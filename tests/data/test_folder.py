from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from cloud_sets import sphere, write_truth

from anomaly3d.data.dataset import CloudReader
from anomaly3d.data.folder import CloudFolder, index_folder
from anomaly3d.data.pcd import read_pcd, write_pcd
from anomaly3d.errors import InputError


def write_category(folder: Path, rng: np.random.Generator, masks: bool = False, train: str = "train") -> Path:
    """Two normal clouds to train on; test/good, test/dent and test/Hole with files of the same names."""
    for name in (train, "test/good", "test/dent", "test/Hole"):
        (folder / name).mkdir(parents=True)
        for stem in ("000", "001"):
            xyz = sphere(rng)
            write_pcd(folder / name / f"{stem}.pcd", xyz)
            if masks and name in ("test/dent", "test/Hole"):
                truth = folder / "masks" / Path(name).name
                truth.mkdir(parents=True, exist_ok=True)
                write_truth(truth / f"{stem}.txt", xyz, xyz[:, 2] > 9, " ")
    return folder


@pytest.mark.parametrize("train", ["train", "normal", "train/good", "train/normal", "Train"])
def test_root_may_be_the_category(tmp_path: Path, rng: np.random.Generator, train: str) -> None:
    root = write_category(tmp_path / "bolt", rng, train=train)
    records = index_folder(root)
    assert {record.category for record in records} == {"bolt"}
    assert [record.sample_id for record in records if record.split == "train"] == ["bolt/train/000", "bolt/train/001"]
    test = {record.sample_id: (record.label, record.defect) for record in records if record.split == "test"}
    assert test["bolt/test/good/000"] == (0, "good")
    assert test["bolt/test/dent/000"] == (1, "dent")
    assert test["bolt/test/Hole/001"] == (1, "Hole")
    assert len(test) == 6


def test_root_may_hold_categories(tmp_path: Path, rng: np.random.Generator) -> None:
    write_category(tmp_path / "bolt", rng, masks=True)
    write_category(tmp_path / "good", rng)
    (tmp_path / "notes").mkdir()
    records = index_folder(tmp_path)
    assert {record.category for record in records} == {"bolt", "good"}
    assert index_folder(tmp_path, categories=["good"]) == [r for r in records if r.category == "good"]
    with pytest.raises(InputError, match="Known categories: bolt, good"):
        index_folder(tmp_path, categories=["nut"])


def test_masks_are_found_beside_or_below(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng, masks=True)
    hole = root / "masks" / "Hole"
    (hole / "000.txt").rename(hole / "000.csv")
    np.save(hole / "001.npy", np.zeros(600))
    (hole / "001.txt").unlink()
    masks = {record.name: record.mask_path for record in index_folder(root, ("test",))}
    assert masks["good/000"] is None
    assert masks["dent/000"] == root / "masks" / "dent" / "000.txt"
    assert masks["Hole/000"] == hole / "000.csv"
    assert masks["Hole/001"] == hole / "001.npy"
    (hole / "001.npy").rename(root / "masks" / "001.npy")
    masks = {record.name: record.mask_path for record in index_folder(root, ("test",))}
    assert masks["Hole/001"] == root / "masks" / "001.npy"
    (root / "masks" / "001.npy").unlink()
    with pytest.raises(InputError, match=r"001\.pcd: no mask"):
        index_folder(root, ("test",))


def test_loose_test_files(tmp_path: Path, rng: np.random.Generator) -> None:
    """With masks they are normal or defective; without, nobody knows: they can be predicted but not tested."""
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    clouds = {name: sphere(rng) for name in ("train/a", "test/b", "test/c_copy")}
    for name, xyz in clouds.items():
        write_pcd(tmp_path / f"{name}.pcd", xyz)
    module = CloudFolder(tmp_path)
    module.setup("predict")
    assert [record.label for record in module.records("predict")] == [-1, -1]
    assert all(batch.label is None and batch.mask is None for batch in module.predict_dataloader())
    with pytest.raises(InputError, match=r"b\.pcd: nothing says whether it \(and 1 others\) is normal"):
        CloudFolder(tmp_path).setup("test")
    (tmp_path / "masks").mkdir()
    write_truth(tmp_path / "masks" / "c_copy.txt", clouds["test/c_copy"], clouds["test/c_copy"][:, 0] > 9)
    records = index_folder(tmp_path, ("test",))
    assert [(record.path.stem, record.label) for record in records] == [("b", 0), ("c_copy", 1)]
    assert records[1].source.endswith("/c")
    write_truth(tmp_path / "masks" / "b.txt", clouds["test/b"], np.zeros(600, dtype=bool))
    assert index_folder(tmp_path, ("test",)) == records  # a mask that marks nothing is of a normal cloud
    # A misspelt mask would make its cloud a normal one.
    (tmp_path / "masks" / "c_copy.txt").rename(tmp_path / "masks" / "c_cpy.txt")
    with pytest.raises(InputError, match=r"c_cpy\.txt: a mask without a cloud"):
        index_folder(tmp_path, ("test",))


def test_a_mask_of_a_normal_cloud_is_no_orphan(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng, masks=True)
    (root / "masks" / "good").mkdir()
    write_truth(root / "masks" / "good" / "000.txt", sphere(rng), np.zeros(600, dtype=bool))
    assert len(index_folder(root, ("test",))) == 6


def test_a_defective_cloud_whose_mask_marks_nothing_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng, masks=True)
    truth = root / "masks" / "dent" / "000.txt"
    rows = np.loadtxt(truth)
    np.savetxt(truth, np.column_stack([rows[:, :3], 0 * rows[:, 3]]))
    module = CloudFolder(root)
    module.setup("test")
    with pytest.warns(UserWarning, match=r"dent/000\.txt: marks no point, and its cloud counts as defective"):
        assert sum(int(batch.label) for batch in module.test_dataloader()) == 4


def test_files_that_are_no_clouds_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng)
    for name in ("train/000.pcd.bak", "test/dent/notes.docx", "test/dent/.hidden.docx"):
        (root / name).write_text("no cloud")
    with pytest.warns(
        UserWarning, match=r"train: 1 of 3 files are no clouds and are left out, the first 000\.pcd\.bak"
    ):
        index_folder(root, ("train",))
    with pytest.warns(UserWarning, match=r"dent: 1 of 3 files .* the first notes\.docx"):
        records = index_folder(root, ("test",))
    assert len(records) == 6


def test_every_format_gives_its_points(tmp_path: Path, rng: np.random.Generator) -> None:
    train = tmp_path / "train"
    train.mkdir()
    xyz = sphere(rng)
    write_pcd(train / "a.PCD", xyz)
    trimesh.PointCloud(xyz).export(train / "b.ply")
    np.savetxt(train / "c.xyz", xyz)
    np.savetxt(train / "d.txt", xyz, delimiter=",")
    np.save(train / "e.npy", xyz)
    mesh = trimesh.creation.icosphere(radius=10)
    mesh.export(train / "f.stl")
    mesh.export(train / "g.obj")
    module = CloudFolder(tmp_path, mesh_points=700, val_normal=0, val_defective=0)
    module.setup("fit")
    sizes = {batch.sample_id[0][-1]: len(batch.xyz) for batch in module.train_dataloader()}
    assert sizes == {"a": 600, "b": 600, "c": 600, "d": 600, "e": 600, "f": 700, "g": 700}


def test_a_mesh_cannot_have_point_truth(tmp_path: Path) -> None:
    for name in ("train", "test/dent", "masks/dent"):
        (tmp_path / name).mkdir(parents=True)
    mesh = trimesh.creation.icosphere(radius=10)
    mesh.export(tmp_path / "test" / "dent" / "a.stl")
    write_truth(tmp_path / "masks" / "dent" / "a.txt", mesh.vertices, mesh.vertices[:, 2] > 9)
    module = CloudFolder(tmp_path)
    module.setup("test")
    with pytest.raises(InputError, match="ground truth goes with point clouds only"):
        next(iter(module.test_dataloader()))


def test_wrong_folders_say_what_to_do(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="no such folder"):
        index_folder(tmp_path / "nowhere")
    write_pcd(tmp_path / "a.pcd", sphere(rng))
    with pytest.raises(InputError, match=r"found: a\.pcd.*Put normal clouds into"):
        index_folder(tmp_path)
    (tmp_path / "test" / "good").mkdir(parents=True)
    with pytest.raises(InputError, match="no train clouds for"):
        CloudFolder(tmp_path).setup("fit")


def test_two_files_with_one_sample_id(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng)
    np.save(root / "test" / "dent" / "000.npy", sphere(rng))
    with pytest.raises(InputError, match=r"000\.npy, .*000\.pcd: one sample id"):
        CloudFolder(root).setup("test")


def test_loose_clouds_find_masks_by_defect(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("train", "test", "ground_truth/dent"):
        (tmp_path / name).mkdir(parents=True)
    clouds = {name: sphere(rng) for name in ("train/a", "test/b", "test/c")}
    for name, xyz in clouds.items():
        write_pcd(tmp_path / f"{name}.pcd", xyz)
    write_truth(tmp_path / "ground_truth/dent/c.txt", clouds["test/c"], clouds["test/c"][:, 0] > 9)
    records = index_folder(tmp_path, ("test",))
    assert [(record.path.stem, record.defect, record.label) for record in records] == [
        ("b", "good", 0),
        ("c", "dent", 1),
    ]
    (tmp_path / "ground_truth" / "b.xyz").write_text("0 0 0 1\n")
    with pytest.raises(InputError, match=r"b\.xyz: masks are \.txt, \.csv, \.npy files"):
        index_folder(tmp_path, ("test",))


def test_one_mask_is_not_of_two_clouds(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng, masks=True)
    (root / "masks" / "dent" / "000.txt").rename(root / "masks" / "000.txt")
    (root / "masks" / "Hole" / "000.txt").unlink()
    with pytest.raises(InputError, match=r"000\.txt: the mask of 2 clouds"):
        index_folder(root, ("test",))


@pytest.mark.parametrize(
    ("moved", "says"),
    [
        ("test/dent/easy/002.pcd", r"easy: clouds in a folder within .*dent"),
        ("train/batch2/002.pcd", r"batch2: clouds in a folder within .*train"),
        ("normal/002.pcd", r"normal/002\.pcd: not trained on, as .*train is there"),
    ],
)
def test_clouds_that_would_be_passed_over_are_refused(
    tmp_path: Path, rng: np.random.Generator, moved: str, says: str
) -> None:
    root = write_category(tmp_path / "bolt", rng)
    (root / moved).parent.mkdir(exist_ok=True)
    write_pcd(root / moved, sphere(rng))
    with pytest.raises(InputError, match=says):
        index_folder(root)


def test_loose_clouds_beside_the_good_ones_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng, train="train/good")
    write_pcd(root / "train" / "002.pcd", sphere(rng))
    with pytest.raises(InputError, match=r"002\.pcd: not trained on"):
        index_folder(root, ("train",))


def test_a_folder_that_looks_normal_is_warned_of(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng)
    (root / "test" / "good").rename(root / "test" / "OK")
    with pytest.warns(UserWarning, match=r"OK: its clouds count as defective\. If they are normal, name it good"):
        index_folder(root, ("test",))


def test_a_mask_that_marks_points_of_a_normal_cloud_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    root = write_category(tmp_path / "bolt", rng, masks=True)
    path, mask = root / "test/good/001.pcd", root / "masks/good/001.txt"
    mask.parent.mkdir()
    xyz = read_pcd(path)
    write_truth(mask, xyz, np.zeros(len(xyz), bool), " ")
    record = next(record for record in index_folder(root) if record.path == path)
    truth = CloudReader()(record).mask
    assert truth is not None
    assert not truth.any()
    write_truth(mask, xyz, xyz[:, 2] > 9, " ")
    with pytest.raises(
        InputError, match=r"masks/good/001\.txt: marks points of .*good/001\.pcd, which lies with the no"
    ):
        CloudReader()(record)
