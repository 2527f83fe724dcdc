"""Real3D-AD, and sets in its layout.

    <root>/<category>/train/<id>_template.pcd       complete clouds of a prototype
    <root>/<category>/test/<id>_good.pcd            single-view scans; also `_good_cut`, `_good_copy`
    <root>/<category>/test/<id>_<defect>.pcd        bulge, sink, bulges, sinks, hybrid; also `_cut`, `_copy`
    <root>/<category>/gt/<id>_<defect>.txt          x y z label, the rows are the cloud

A `_cut` or `_copy` cloud derives from the scan of the same id, so both have one `source`. `root` may be the folder that
holds `Real3D-AD-PCD`. The layout follows public code and file lists; the released files were not at hand when this was
written. A public audit of them found five truth files whose rows are not their clouds' points: chicken 705_bulge and
706_sink, seahorse 265_bulge and 265_bulge_cut, starfish 433_bulge; `on_truth_mismatch` says what to do with those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import Categories, CloudRecord, Split, without_copy_suffix
from anomaly3d.data.stem_layout import index_by_stem
from anomaly3d.data.validation import View

NESTED = ("Real3D-AD-PCD",)
DEFECTS = ("bulge", "sink", "bulges", "sinks", "hybrid")


def parse_stem(stem: str) -> tuple[str, str]:
    """Defect and source of a cloud from its stem: `64_bulge_cut` is ("bulge", "64").

    "good" for `good` (test), `template` and `prototype` (train).
    """
    scan, _, kind = without_copy_suffix(stem).partition("_")
    kind = kind.lower()
    return ("good" if kind in ("template", "prototype") else kind), scan


def index_real3d_ad(
    root: str | Path, splits: Sequence[Split] = ("train", "test"), categories: Categories = "all"
) -> list[CloudRecord]:
    """Records of the asked splits; see `index_by_stem` for order and errors."""
    return index_by_stem(root, NESTED, parse_stem, DEFECTS, splits, categories)


class Real3DAD(PointCloudDataModule):
    """Data module for Real3D-AD; the arguments are `PointCloudDataModule`'s.

    Test clouds are single views in any pose, and the validation clouds follow them: `val_view` defaults to "single" and
    `val_rotation` to 180 degrees.
    """

    nested = NESTED
    parse_stem = staticmethod(parse_stem)

    def __init__(
        self, root: str | Path, *, val_view: View = "single", val_rotation: float = 180.0, **kwargs: Any
    ) -> None:
        super().__init__(root, val_view=val_view, val_rotation=val_rotation, **kwargs)

    def index(self, split: Split) -> list[CloudRecord]:
        """Records of one split."""
        return index_real3d_ad(self.root, (split,), self.categories)
