"""Anomaly-ShapeNet (v2), and sets in its layout, such as those that `anomaly3d.data.synthetic` writes.

    <root>/<category>/train/<category>_template<n>.pcd
    <root>/<category>/test/<category>_positive<n>.pcd         positive means normal
    <root>/<category>/test/<category>_<defect><n>.pcd
    <root>/<category>/GT/<stem>.txt                           x y z label, any delimiter, rows in any order

`root` may be the archive's top folder: `dataset/pcd` or `pcd` in it is found. The release's twelve further classes lie
in `new_pcd`, a root of its own. The layout follows public code and file lists; the released files were not at hand when
this was written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import Categories, CloudRecord, Split
from anomaly3d.data.stem_layout import index_by_stem

NESTED = ("dataset/pcd", "pcd")
DEFECTS = ("bulge", "concavity", "scratch", "hole", "broken", "crack", "bending")


def parse_stem(stem: str) -> tuple[str, str]:
    """Defect and source of a cloud from its stem: `cap0_crak3` is ("crack", "cap0_crak3").

    "good" for `positive` (test) and `template` (train). Every cloud is a source of its own.
    """
    kind = re.sub(r"\d+$", "", stem.rsplit("_", 1)[-1]).lower()
    return {"positive": "good", "template": "good", "crak": "crack"}.get(kind, kind), stem


def index_anomaly_shapenet(
    root: str | Path, splits: Sequence[Split] = ("train", "test"), categories: Categories = "all"
) -> list[CloudRecord]:
    """Records of the asked splits; see `index_by_stem` for order and errors."""
    return index_by_stem(root, NESTED, parse_stem, DEFECTS, splits, categories)


class AnomalyShapeNet(PointCloudDataModule):
    """Data module for Anomaly-ShapeNet; the arguments are `PointCloudDataModule`'s."""

    nested = NESTED
    parse_stem = staticmethod(parse_stem)

    def index(self, split: Split) -> list[CloudRecord]:
        """Records of one split."""
        return index_anomaly_shapenet(self.root, (split,), self.categories)
