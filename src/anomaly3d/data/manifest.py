"""File lists: a split written down, one JSON object a line, as in MC3D-AD.

    {"filename": "cap0/test/cap0_bulge0.pcd", "label": 1, "label_name": "defective", "clsname": "cap0",
     "maskname": "cap0/GT/cap0_bulge0.txt"}

`label` is 0 or 1, `label_name` and `maskname` are optional; paths are relative to the data set's root.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anomaly3d.data.index import Categories, CloudRecord, Split, choose_categories
from anomaly3d.data.stem_layout import StemParser
from anomaly3d.errors import InputError


def read_manifest(
    path: str | Path, root: str | Path, split: Split, parse_stem: StemParser, categories: Categories = "all"
) -> list[CloudRecord]:
    """Records of a file list, in its order.

    The label is the file's; defect and source come from the stem through the layout's `parse_stem`. Raises InputError
    naming the line for anything missing or wrong.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such file list. Set it to a file with one JSON object a line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text in UTF-8 ({error.reason}). Write the file list in UTF-8.") from error
    records = [
        _record(f"{path}, line {number}", line, Path(root), split, parse_stem)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not records:
        raise InputError(f"{path}: an empty file list. It needs one JSON object a line.")
    wanted = set(choose_categories({record.category for record in records}, categories, path))
    return [record for record in records if record.category in wanted]


def _record(where: str, line: str, root: Path, split: Split, parse_stem: StemParser) -> CloudRecord:
    try:
        entry: dict[str, Any] = json.loads(line)
        filename, category, label = entry["filename"], str(entry["clsname"]), entry["label"]
        for name in (filename, entry.get("maskname") or ""):
            if not isinstance(name, str):
                raise TypeError(f"{name!r} is no file name")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{where}: not a JSON object with filename, label and clsname ({type(error).__name__}: {error})."
        ) from error
    if label not in (0, 1):
        raise InputError(f"{where}: label {label!r}; 0 is normal, 1 is anomalous.")
    if split == "train" and label == 1:
        raise InputError(f"{where}: an anomalous cloud in a training list. Training clouds are normal.")
    cloud = root / filename
    mask = root / entry["maskname"] if entry.get("maskname") and label == 1 else None
    for file in (cloud, mask):
        if file is not None and not file.is_file():
            raise InputError(f"{where}: {file} does not exist. Paths are relative to `root` ({root}).")
    defect, source = parse_stem(cloud.stem)
    if label == 0:
        defect = "good"
    elif defect == "good":
        defect = str(entry.get("label_name", "defective"))
    # Two folders of one category may hold files of one name.
    name = cloud.stem if cloud.parent.name == split else f"{cloud.parent.name}/{cloud.stem}"
    return CloudRecord(cloud, category, split, int(label), defect, mask, f"{category}/{source}", name)
