"""What one cloud of a data set is, and what the layouts share to find clouds in folders."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anomaly3d.errors import InputError

Split = Literal["train", "test"]
Categories = str | list[str]
"""`all`, the name of one, or several names."""
UNKNOWN = -1
"""Label of a cloud whose truth nobody has told."""

_NOT_OURS = (".", "__")
"""Hidden folders, and those that archive tools leave behind (`__MACOSX`)."""
_COPY_SUFFIX = re.compile(r"(_(cut|copy))+$", re.IGNORECASE)


@dataclass(frozen=True)
class CloudRecord:
    """One cloud of a data set: where it lies and what is known about it.

    `label` is 0 for a normal cloud, 1 for an anomalous one and -1 where it is unknown. `defect` is "good" for a
    normal cloud. `mask_path` is the point-level truth, which only anomalous clouds need. `source` names the scan a
    cloud derives from: clouds of one source are not independent, so statistics resample sources. `name` identifies the
    cloud within its category and split (the file's stem unless a layout has to say more).
    """

    path: Path
    category: str
    split: Split
    label: int
    defect: str
    mask_path: Path | None
    source: str
    name: str = ""

    @property
    def sample_id(self) -> str:
        """Unique within a data set."""
        return f"{self.category}/{self.split}/{self.name or self.path.stem}"


def file_stem(sample_id: str) -> str:
    """A file name for a sample: its id with the folders joined by dots."""
    return sample_id.replace("/", ".")


def without_copy_suffix(stem: str) -> str:
    """`64_bulge_cut` and `64_bulge_copy` derive from the scan `64_bulge`."""
    return _COPY_SUFFIX.sub("", stem)


def child_folder(folder: Path, *names: str) -> Path | None:
    """First of `folder`'s sub-folders that has one of the names, in any case (`GT` and `gt`)."""
    if not folder.is_dir():
        return None
    children = {child.name.lower(): child for child in sorted(folder.iterdir(), reverse=True) if child.is_dir()}
    return next((children[name] for name in names if name in children), None)


def sub_folders(folder: Path) -> list[Path]:
    """Sub-folders in sorted order, without hidden ones and those that archive tools leave behind."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(_NOT_OURS))


def _all_below(folder: Path) -> Iterator[Path]:
    for where, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(_NOT_OURS)]
        yield from (Path(where, name) for name in names)


def cloud_files(folder: Path | None, suffixes: Collection[str], recursive: bool = False) -> list[Path]:
    """Files with one of the suffixes (lower case, with dot), in sorted order, without hidden ones (`._x.pcd`).

    `recursive` takes in sub-folders, but those that `sub_folders` leaves out and links to folders. Warns of files that
    are no clouds by their suffix; raises InputError for a link that leads nowhere.
    """
    if folder is None:
        return []
    found = _all_below(folder) if recursive else folder.iterdir()
    visible = sorted(path for path in found if not path.name.startswith("."))
    for path in visible:
        if path.is_symlink() and path.suffix.lower() in suffixes and not path.exists():
            raise InputError(f"{path}: a link to nothing. Fetch its content (git annex get, dvc pull), or remove it.")
    files = [path for path in visible if path.is_file()]
    others = [path for path in files if path.suffix.lower() not in suffixes]
    if others:
        warnings.warn(
            f"{folder}: {len(others)} of {len(files)} files are no clouds and are left out, the first {others[0].name} "
            f"(clouds here are {', '.join(sorted(suffixes))}).",
            stacklevel=2,
        )
    return [path for path in files if path.suffix.lower() in suffixes]


def refuse_deeper(folder: Path | None, suffixes: Collection[str]) -> None:
    """Raise InputError where clouds lie in folders within a folder of clouds: they would be passed over."""
    for inner in [] if folder is None else sub_folders(folder):
        if any(path.suffix.lower() in suffixes for path in inner.rglob("*")):
            raise InputError(f"{inner}: clouds in a folder within {folder}. Put them into {folder} itself.")


def is_category(folder: Path) -> bool:
    """Whether a folder looks like one category: it has a `train` or a `test` folder."""
    return child_folder(folder, "train", "test") is not None


def find_root(root: str | Path, nested: Sequence[str] = ()) -> Path:
    """The folder whose sub-folders are the categories, given that folder or one from which `nested` leads there.

    Raises InputError if `root` does not exist, is one category, or holds none.
    """
    root = Path(root).expanduser()
    if root.is_file():
        raise InputError(f"{root}: a file, not a folder. Unpack the archive and set `root` to the unpacked folder.")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder. Set `root` to where the data set lies.")
    for folder in (root, *(root / name for name in nested)):
        if folder.is_dir() and any(is_category(child) for child in sub_folders(folder)):
            return folder
    if is_category(root):
        folder = root.resolve()
        raise InputError(
            f"{root}: one category, not the data set. Set `root` to {folder.parent} and `categories` to "
            f"[{folder.name}]."
        )
    seen = ", ".join(child.name for child in sorted(root.iterdir())[:8]) or "nothing"
    raise InputError(
        f"{root}: no category folder with `train` or `test` in it (found: {seen}). Set `root` to the folder that "
        f"holds the categories."
    )


def category_folders(root: Path) -> dict[str, Path]:
    """Folder of each category under `root`."""
    return {folder.name: folder for folder in sub_folders(root) if is_category(folder)}


def choose_categories(known: Collection[str], wanted: Categories, where: str | Path) -> list[str]:
    """The wanted categories in sorted order, or InputError with the known ones."""
    if wanted == "all":
        return sorted(known)
    if not wanted:
        raise InputError("categories: an empty list. Name categories, or set it to `all`.")
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    unknown = sorted(names - set(known))
    if unknown:
        raise InputError(
            f"categories: {', '.join(unknown)} not in {where}. Known categories: {', '.join(sorted(known))}."
        )
    return sorted(names)


def find_mask(folder: Path | None, stem: str, suffixes: Sequence[str]) -> Path | None:
    """The ground-truth file of a cloud, if there is one."""
    if folder is None:
        return None
    names = (f"{stem}{spelt}" for suffix in suffixes for spelt in (suffix, suffix.upper()))
    return next((path for name in names if (path := folder / name).is_file()), None)


def require_unique(records: Iterable[CloudRecord]) -> None:
    """Raise InputError if two records have one sample id: predictions could not be told apart."""
    records = list(records)
    counts = Counter(record.sample_id for record in records)
    for record in records:
        if counts[record.sample_id] > 1:
            twins = list(dict.fromkeys(str(r.path) for r in records if r.sample_id == record.sample_id))
            if len(twins) == 1:
                raise InputError(f"{twins[0]}: listed {counts[record.sample_id]} times. List it once.")
            raise InputError(
                f"{', '.join(twins)}: one sample id ({record.sample_id}) for several files. Rename or remove one."
            )
