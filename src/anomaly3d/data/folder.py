"""A user's own clouds in plain folders.

    <category>/train/*  or  <category>/train/{good,normal}/*  or  <category>/normal/*
    <category>/test/{good,normal}/*    <category>/test/<defect>/*        or files directly in test/
    <category>/masks/<defect>/<stem>.txt  or  <category>/masks/<stem>.txt      optional; .csv and .npy too;
                                                                               `ground_truth`, `gt` or `mask` likewise

`root` holds one folder per category, or is itself the one category. Clouds are .pcd, .ply, .obj, .stl, .xyz, .txt,
.csv or .npy; meshes are sampled. Files directly in `test/` are defective where their mask marks a point, else normal;
without a folder of masks their labels are unknown: such clouds can be scored (`predict`) but not evaluated (`test`).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
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
    refuse_deeper,
    sub_folders,
    without_copy_suffix,
)
from anomaly3d.data.io import CLOUD_SUFFIXES
from anomaly3d.data.masks import MASK_SUFFIXES, TRUTH_FOLDERS, read_truth
from anomaly3d.errors import InputError

_NORMAL = ("good", "normal")
_LOOKS_NORMAL = re.compile(r"good|normal|ok|pass|positive", re.IGNORECASE)


def index_folder(
    root: str | Path, splits: Sequence[Split] = ("train", "test"), categories: Categories = "all"
) -> list[CloudRecord]:
    """Records of the asked splits, sorted by category, defect and name; the other split's folders are not opened.

    Raises InputError for a missing folder, an unknown category, a defective cloud without mask where others of its
    category have one, a mask without cloud or of several, or clouds where none are looked for.
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
    if train is None:
        return []
    chosen = child_folder(train, *_NORMAL) or train
    for other in (train, child_folder(folder, "normal")):
        if other is not None and other != chosen:
            _refuse_unused(other, chosen)
    refuse_deeper(chosen, CLOUD_SUFFIXES)
    return [
        CloudRecord(path, category, "train", 0, "good", None, f"{category}/{without_copy_suffix(path.stem)}")
        for path in cloud_files(chosen, CLOUD_SUFFIXES)
    ]


def _test_records(folder: Path, category: str) -> list[CloudRecord]:
    test = child_folder(folder, "test")
    if test is None:
        return []
    masks = child_folder(folder, *TRUTH_FOLDERS)
    records = [_loose_record(path, category, masks) for path in cloud_files(test, CLOUD_SUFFIXES)]
    for group in sub_folders(test):
        refuse_deeper(group, CLOUD_SUFFIXES)
        defect = "good" if group.name.lower() in _NORMAL else group.name
        if _LOOKS_NORMAL.match(defect) and defect != "good":
            warnings.warn(f"{group}: its clouds count as defective. If they are normal, name it good.", stacklevel=2)
        for path in cloud_files(group, CLOUD_SUFFIXES):
            source = f"{category}/{defect}/{without_copy_suffix(path.stem)}"
            mask = None if masks is None else find_mask(masks / group.name, path.stem, MASK_SUFFIXES)
            if defect != "good" and masks is not None:
                mask = mask or find_mask(masks, path.stem, MASK_SUFFIXES)
                if mask is None:
                    raise InputError(
                        f"{path}: no mask for it in {masks / group.name} or {masks} ({', '.join(MASK_SUFFIXES)}). Add "
                        f"it, or remove the folder of masks to evaluate whole clouds only."
                    )
            label = int(defect != "good")
            name = f"{defect}/{path.stem}"
            records.append(CloudRecord(path, category, "test", label, defect, mask, source, name))
    _refuse_orphans(masks, records, test)
    return records


def _refuse_unused(folder: Path, chosen: Path) -> None:
    """Normal clouds beside those that are trained on would be passed over."""
    unused = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in CLOUD_SUFFIXES and not p.name.startswith(".")]
    if unused:
        raise InputError(f"{unused[0]}: not trained on, as {chosen} is there. Put all normal clouds into one folder.")


def _refuse_orphans(masks: Path | None, records: Sequence[CloudRecord], test: Path) -> None:
    """A mask that belongs to no cloud is a misspelt name, and its cloud would be taken for a normal one.

    Of two clouds it would have the points of one.
    """
    if masks is None:
        return
    normal = {record.path.stem for record in records if record.label == 0}
    used = Counter(record.mask_path for record in records if record.mask_path is not None)
    for folder in (masks, *sub_folders(masks)):
        for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
            if path.suffix.lower() not in MASK_SUFFIXES:
                raise InputError(f"{path}: masks are {', '.join(MASK_SUFFIXES)} files. Convert it, or remove it.")
            if not used[path] and path.stem not in normal:
                raise InputError(f"{path}: a mask without a cloud. Name it as its cloud in {test}, or remove it.")
            if used[path] > 1:
                raise InputError(f"{path}: the mask of {used[path]} clouds. Put each into a folder of its defect.")


def _loose_record(path: Path, category: str, masks: Path | None) -> CloudRecord:
    source = f"{category}/{without_copy_suffix(path.stem)}"
    if masks is None:
        return CloudRecord(path, category, "test", UNKNOWN, "unknown", None, source)
    for folder, defect in ((masks, "defective"), *((folder, folder.name) for folder in sub_folders(masks))):
        mask = find_mask(folder, path.stem, MASK_SUFFIXES)
        if mask is not None and read_truth(mask).labels.any():
            return CloudRecord(path, category, "test", 1, defect, mask, source)
    return CloudRecord(path, category, "test", 0, "good", None, source)


class CloudFolder(PointCloudDataModule):
    """Data module for a user's own folders; the arguments are `PointCloudDataModule`'s."""

    def index(self, split: Split) -> list[CloudRecord]:
        """Records of one split."""
        return index_folder(self.root, (split,), self.categories)

    def folders(self) -> dict[str, Path]:
        """Folder of each category."""
        return folder_categories(self.root)
