"""A user's own clouds in plain folders.

    <category>/train/*  or  <category>/train/{good,normal}/*  or  <category>/normal/*
    <category>/test/{good,normal}/*    <category>/test/<defect>/*        or files directly in test/
    <category>/masks/<defect>/<stem>.txt  or  <category>/masks/<stem>.txt      optional; .csv and .npy too

`root` holds one folder per category, or is itself the one category. Clouds are .pcd, .ply, .obj, .stl, .xyz, .txt,
.csv or .npy; meshes are sampled. Files directly in `test/` are defective where their mask marks a point, else normal;
without a folder of masks their labels are unknown: such clouds can be scored (`predict`) but not evaluated (`test`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import (
    UNKNOWN,
    Categories,
    CloudRecord,
    Split,
    child_folder,
    choose_categories,
    cloud_files,
    find_mask,
    sub_folders,
    without_copy_suffix,
)
from anomaly3d.data.io import CLOUD_SUFFIXES
from anomaly3d.data.masks import MASK_SUFFIXES, read_truth
from anomaly3d.errors import InputError

_NORMAL = ("good", "normal")


def index_folder(
    root: str | Path, splits: Sequence[Split] = ("train", "test"), categories: Categories = "all"
) -> list[CloudRecord]:
    """Records of the asked splits, sorted by category, defect and name; the other split's folders are not opened.

    Raises InputError for a missing folder, an unknown category, a defective cloud without mask where others of its
    category have one, or a mask without cloud.
    """
    folders = folder_categories(root)
    records: list[CloudRecord] = []
    for category in choose_categories(folders, categories, root):
        if "train" in splits:
            records += _train_records(folders[category], category)
        if "test" in splits:
            records += _test_records(folders[category], category)
    return records


def folder_categories(root: str | Path) -> dict[str, Path]:
    """Folder of each category: `root` itself, or its sub-folders."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Set `root` to the folder of your clouds.")
    if child_folder(root, "train", "normal", "test"):
        return {root.resolve().name: root}
    folders = {folder.name: folder for folder in sub_folders(root) if child_folder(folder, "train", "normal", "test")}
    if not folders:
        seen = ", ".join(child.name for child in sorted(root.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{root}: neither it nor a folder in it has a folder `train` (or `normal`) or `test` (found: {seen}). Put "
            f"normal clouds into {root / 'train'} and clouds to test into {root / 'test'}."
        )
    return folders


def _train_records(folder: Path, category: str) -> list[CloudRecord]:
    train = child_folder(folder, "train") or child_folder(folder, "normal")
    files = [] if train is None else cloud_files(child_folder(train, *_NORMAL) or train, CLOUD_SUFFIXES)
    return [CloudRecord(path, category, "train", 0, "good", None, f"{category}/{path.stem}") for path in files]


def _test_records(folder: Path, category: str) -> list[CloudRecord]:
    test = child_folder(folder, "test")
    if test is None:
        return []
    masks = child_folder(folder, "masks", "mask", "gt")
    records = [_loose_record(path, category, masks) for path in cloud_files(test, CLOUD_SUFFIXES)]
    for group in sub_folders(test):
        defect = "good" if group.name.lower() in _NORMAL else group.name
        for path in cloud_files(group, CLOUD_SUFFIXES):
            source = f"{category}/{defect}/{without_copy_suffix(path.stem)}"
            mask = None
            if defect != "good" and masks is not None:
                mask = find_mask(masks / group.name, path.stem, MASK_SUFFIXES) or find_mask(
                    masks, path.stem, MASK_SUFFIXES
                )
                if mask is None:
                    raise InputError(
                        f"{path}: no mask for it in {masks / group.name} or {masks} ({', '.join(MASK_SUFFIXES)}). Add "
                        f"it, or remove the folder of masks to evaluate whole clouds only."
                    )
            label = int(defect != "good")
            name = f"{defect}/{path.stem}"
            records.append(CloudRecord(path, category, "test", label, defect, mask, source, name))
    _refuse_orphans(masks, {record.path.stem for record in records}, test)
    return records


def _refuse_orphans(masks: Path | None, clouds: set[str], test: Path) -> None:
    """A mask that belongs to no cloud is a misspelt name, and its cloud would be taken for a normal one."""
    if masks is None:
        return
    folders = [masks, *sub_folders(masks)]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    orphans = [path for path in files if path.suffix.lower() in MASK_SUFFIXES and path.stem not in clouds]
    if orphans:
        raise InputError(
            f"{orphans[0]}: a mask without a cloud ({len(orphans)} in {masks}). Name it as its cloud in {test}, or "
            f"remove it."
        )


def _loose_record(path: Path, category: str, masks: Path | None) -> CloudRecord:
    source = f"{category}/{without_copy_suffix(path.stem)}"
    if masks is None:
        return CloudRecord(path, category, "test", UNKNOWN, "unknown", None, source)
    mask = find_mask(masks, path.stem, MASK_SUFFIXES)
    if mask is None or not read_truth(mask).labels.any():
        return CloudRecord(path, category, "test", 0, "good", None, source)
    return CloudRecord(path, category, "test", 1, "defective", mask, source)


class CloudFolder(PointCloudDataModule):
    """Data module for a user's own folders; the arguments are `PointCloudDataModule`'s."""

    def index(self, split: Split) -> list[CloudRecord]:
        """Records of one split."""
        return index_folder(self.root, (split,), self.categories)

    def folders(self) -> dict[str, Path]:
        """Folder of each category."""
        return folder_categories(self.root)
