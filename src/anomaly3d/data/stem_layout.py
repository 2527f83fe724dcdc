"""Index of the layouts whose test clouds say in their stems what they are.

    <root>/<category>/{train,test}/<stem>.pcd      <root>/<category>/GT/<stem>.txt

Label, defect and source come from the stem, never from the path: a data set under `/tmp` or `good/` is like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from anomaly3d.data.index import (
    Categories,
    CloudRecord,
    Split,
    category_folders,
    child_folder,
    choose_categories,
    cloud_files,
    find_mask,
    find_root,
    refuse_deeper,
)
from anomaly3d.errors import InputError

StemParser = Callable[[str], tuple[str, str]]
"""Stem of a cloud -> (defect or "good", source)."""

_SUFFIXES = (".pcd", ".ply")


def index_by_stem(
    root: str | Path,
    nested: Sequence[str],
    parse_stem: StemParser,
    known_defects: Collection[str],
    splits: Sequence[Split],
    categories: Categories,
) -> list[CloudRecord]:
    """Records of the asked splits, sorted by category and name; other splits' folders are not opened.

    A kind of cloud that is not known counts as a defect if the cloud has ground truth. Raises InputError for a
    missing folder, an unknown category, a defective cloud without ground truth or among the training clouds.
    """
    root = find_root(root, nested)
    folders = category_folders(root)
    records = []
    for category in choose_categories(folders, categories, root):
        truth = child_folder(folders[category], "gt")
        for split in splits:
            folder = child_folder(folders[category], split)
            refuse_deeper(folder, _SUFFIXES)
            files = cloud_files(folder, _SUFFIXES)
            if split == "test":
                _warn_of_orphans(truth, {path.stem for path in files})
            records += [_record(path, category, split, truth, parse_stem(path.stem), known_defects) for path in files]
    return records


def _warn_of_orphans(truth: Path | None, clouds: Collection[str]) -> None:
    """Ground truth of clouds that are not there: a set that is half unpacked gives a plausible table, too."""
    files = sorted(truth.glob("*.[tT][xX][tT]")) if truth is not None else []
    orphans = [path for path in files if path.stem not in clouds and not path.name.startswith(".")]
    if orphans:
        warnings.warn(
            f"{orphans[0]}: ground truth without a cloud beside it in test ({len(orphans)} of {len(files)} files); is "
            "the set unpacked as a whole?",
            stacklevel=4,
        )


def _record(
    path: Path,
    category: str,
    split: Split,
    truth: Path | None,
    parsed: tuple[str, str],
    known_defects: Collection[str],
) -> CloudRecord:
    defect, source = parsed
    if split == "train":
        if defect in known_defects:
            raise InputError(f"{path}: a defective cloud (`{defect}`) among the training clouds. Move it to test.")
        # Templates are numbered apart from test scans, so the whole stem names the source.
        return CloudRecord(path, category, split, 0, "good", None, f"{category}/{path.stem}")
    if defect == "good":
        return CloudRecord(path, category, split, 0, defect, None, f"{category}/{source}")
    mask_path = find_mask(truth, path.stem, (".txt",))
    if mask_path is None:
        expected = (truth or path.parent.parent / "GT") / f"{path.stem}.txt"
        raise InputError(
            f"{path}: `{defect}` in its name says it is defective, but its ground truth {expected} is missing. Add it; "
            f"if the set is of another layout, take its class (configs/data); if the cloud is normal, rename it."
        )
    return CloudRecord(path, category, split, 1, defect, mask_path, f"{category}/{source}")
