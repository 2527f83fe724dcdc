"""From records to batches: a cloud is read, its truth matched to its points, and both are kept while memory allows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch.utils.data import Dataset

from anomaly3d.data.index import UNKNOWN, CloudRecord, require_unique
from anomaly3d.data.io import MESH_SUFFIXES, centred, finite_rows, read_points, refuse_stray
from anomaly3d.data.masks import TruthMismatch, match_truth, read_truth
from anomaly3d.errors import InputError
from anomaly3d.types import PointCloudBatch

OnMismatch = Literal["error", "use_truth"]


class Cloud(NamedTuple):
    """A cloud in memory: centred points, and which of them are anomalous (None: not known)."""

    xyz: Float32[np.ndarray, "N 3"]
    mask: Bool[np.ndarray, " N"] | None


class Sample(NamedTuple):
    """One cloud on its way into a batch."""

    cloud: Cloud
    sample_id: str
    category: int | None
    label: int | None


@dataclass(frozen=True)
class CloudReader:
    """Reads the cloud of a record, and its mask.

    Args:
        strict_io: refuse clouds with non-finite points; otherwise those points are dropped with a warning.
        min_points: clouds with fewer points are refused.
        mesh_points: points drawn from the surface where the file is a mesh.
        on_truth_mismatch: what to do where the rows of a truth file are not the points of the cloud: "error", or
            "use_truth" to take the rows as the cloud, with a warning, as the public loaders of Real3D-AD do.
    """

    strict_io: bool = False
    min_points: int = 16
    mesh_points: int = 50_000
    on_truth_mismatch: OnMismatch = "error"

    def __call__(self, record: CloudRecord, with_mask: bool = True) -> Cloud:
        """Points and mask in the order of the file's finite points; mask None if not asked for, or not known."""
        points = read_points(record.path, self.mesh_points)
        finite = finite_rows(points, record.path, self.strict_io)
        kept = points[finite]
        mask = None
        if with_mask and record.mask_path is not None:
            kept, mask = self._masked(record.path, record.mask_path, points, finite)
            if record.label == 0 and mask.any():
                raise InputError(
                    f"{record.mask_path}: marks points of {record.path}, which lies with the normal clouds. Move the "
                    "cloud to its defect, or remove the mask."
                )
            if record.label != 0 and not mask.any():
                warnings.warn(f"{record.mask_path}: marks no point, and its cloud counts as defective.", stacklevel=2)
        elif with_mask and record.label == 0:
            mask = np.zeros(len(kept), dtype=bool)
        if len(kept) < self.min_points:
            raise InputError(
                f"{record.path}: {len(kept)} points, fewer than {self.min_points}. Remove the cloud, or lower "
                f"`min_points`."
            )
        refuse_stray(kept, record.path)
        return Cloud(centred(kept), mask)

    def _masked(
        self, path: Path, mask_path: Path, points: Float[np.ndarray, "N 3"], finite: Bool[np.ndarray, " N"]
    ) -> tuple[Float[np.ndarray, "M 3"], Bool[np.ndarray, " M"]]:
        truth = read_truth(mask_path)
        try:
            return points[finite], match_truth(truth, mask_path, points, finite)
        except TruthMismatch as error:
            if self.on_truth_mismatch == "use_truth" and truth.xyz is not None:
                warnings.warn(f"{error} Its rows are used as the cloud in place of {path}.", stacklevel=2)
                return truth.xyz, truth.labels
            remedy = "Mend it, or set `on_truth_mismatch` to use_truth to take its rows as the cloud."
            if path.suffix.lower() in MESH_SUFFIXES:
                remedy = "A mesh's points are drawn from its surface: ground truth goes with point clouds only."
            raise TruthMismatch(f"{error} (Cloud: {path}.) {remedy}") from error


class CloudCache:
    """Keeps the first clouds it is given until its budget is spent.

    Nothing is evicted: epochs visit every cloud once, and dropping the oldest would lose each before its next use.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._clouds: dict[str, Cloud] = {}

    def get(self, key: str, make: Callable[[], Cloud]) -> Cloud:
        """The cloud stored under `key`, or the one that `make` returns."""
        if key in self._clouds:
            return self._clouds[key]
        cloud = make()
        size = cloud.xyz.nbytes + (0 if cloud.mask is None else cloud.mask.nbytes)
        if self.used + size <= self.budget:
            self._clouds[key] = cloud
            self.used += size
        return cloud


class CloudDataset(Dataset[Sample]):
    """The clouds of some records.

    Args:
        records: what to read; sample ids must be unique.
        category_names: names that `Sample.category` indexes; a category that is not among them gives None.
        reader: how to read.
        cache_bytes: memory for clouds already read (per worker).
        with_masks: whether to read point truth. Where one anomalous cloud of a category has none, the whole category
            goes without: a mixture would count the points of the one as normal.
    """

    def __init__(
        self,
        records: Sequence[CloudRecord],
        category_names: Sequence[str],
        reader: CloudReader,
        cache_bytes: int = 0,
        with_masks: bool = True,
    ) -> None:
        require_unique(records)
        self.records = tuple(records)
        self.category_names = tuple(category_names)
        self.reader = reader
        known = {r.category for r in records} if with_masks else set()
        self.masked = known - {r.category for r in records if r.label != 0 and r.mask_path is None}
        self.cache = CloudCache(cache_bytes)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        cloud = self.cache.get(record.sample_id, lambda: self.reader(record, record.category in self.masked))
        category = self.category_names.index(record.category) if record.category in self.category_names else None
        return Sample(cloud, record.sample_id, category, None if record.label == UNKNOWN else record.label)


def collate(samples: Sequence[Sample]) -> PointCloudBatch:
    """Pack samples; category or label is None for the batch if it is None for one of them."""
    clouds = [sample.cloud for sample in samples]
    return PointCloudBatch.pack(
        [torch.from_numpy(cloud.xyz) for cloud in clouds],
        [sample.sample_id for sample in samples],
        category=_all_known([sample.category for sample in samples]),
        label=_all_known([sample.label for sample in samples]),
        mask=[None if cloud.mask is None else torch.from_numpy(cloud.mask) for cloud in clouds],
    )


def _all_known(values: list[int | None]) -> list[int] | None:
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
