"""The base of all data modules: from an index of records to Lightning's four dataloaders."""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, RandomSampler, Sampler

from anomaly3d.data.dataset import CloudDataset, CloudReader, OnMismatch, Sample, collate
from anomaly3d.data.index import (
    UNKNOWN,
    Categories,
    CloudRecord,
    Split,
    category_folders,
    choose_categories,
    cloud_files,
    find_root,
    require_unique,
)
from anomaly3d.data.io import CLOUD_SUFFIXES
from anomaly3d.data.manifest import read_manifest
from anomaly3d.data.masks import TRUTH_FOLDERS
from anomaly3d.data.stem_layout import StemParser
from anomaly3d.data.validation import ValidationDataset, View, ViewSettings, hold_out
from anomaly3d.errors import InputError


class PointCloudDataModule(LightningDataModule):
    """Clouds of one data set as `PointCloudBatch`es.

    Fitting and validating read the training clouds only: validation clouds are made from them (`data/validation.py`).
    `category_names`, which `PointCloudBatch.category` indexes, are the chosen categories in sorted order. Subclasses
    know a layout: they define `index`.

    Args:
        root: folder of the data set.
        categories: "all", or the name or names of those to use.
        batch_size: clouds per training batch [paper: SeDiR 1; Mamba3dAD 2 per GPU].
        eval_batch_size: clouds per batch everywhere else.
        num_workers: processes that read clouds; 0 reads in the main one.
        strict_io: refuse clouds with non-finite points instead of dropping those points with a warning. Scores are
            always of the points that remain, in the file's order.
        min_points: clouds with fewer points are refused.
        mesh_points: points drawn from the surface of a mesh, always the same ones.
        on_truth_mismatch: where ground truth does not fit its cloud: "error", or "use_truth" to take the truth's rows
            as the cloud, with a warning.
        cache_gb: memory for the training clouds, and as much again for the validation clouds, shared out among the
            workers.
        train_manifest: file list of the training split instead of the folders (see `data/manifest.py`).
        test_manifest: file list of the test split instead of the folders.
        predict_path: folder (searched with its sub-folders) or file of unlabelled clouds for `predict`, which then
            does without the data set; by default the test clouds, labelled or not.
        val_normal: normal validation clouds per category [ours].
        val_defective: validation clouds with a synthetic defect per category [ours]. With both at 0 there is no
            validation.
        val_points: points of a validation cloud [ours].
        val_view: "full", or "single" if test clouds are scans from one side.
        val_rotation: largest angle in degrees between a validation cloud's pose and its training cloud's [ours].
        val_fraction: share of the training clouds held out for validation, in categories with ten or more [ours]; in
            smaller ones validation clouds are made from the clouds that are trained on.
        val_seed: of the validation split, independent of the training seed.
    """

    nested: tuple[str, ...] = ()
    """Folders inside the archive that may hold the categories."""

    parse_stem: StemParser = staticmethod(lambda stem: ("defective", stem))
    """Defect and source of a file in a manifest."""

    def __init__(
        self,
        root: str | Path,
        categories: str | list[str] = "all",
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        strict_io: bool = False,
        min_points: int = 16,
        mesh_points: int = 50_000,
        on_truth_mismatch: OnMismatch = "error",
        cache_gb: float = 2.0,
        train_manifest: str | Path | None = None,
        test_manifest: str | Path | None = None,
        predict_path: str | Path | None = None,
        val_normal: int = 3,
        val_defective: int = 3,
        val_points: int = 20_000,
        val_view: View = "full",
        val_rotation: float = 5.0,
        val_fraction: float = 0.2,
        val_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("min_points", min_points, 1),
            ("mesh_points", mesh_points, min_points),
            ("cache_gb", cache_gb, 0),
            ("val_normal", val_normal, 0),
            ("val_defective", val_defective, 0),
            ("val_points", val_points, min_points),
            ("val_rotation", val_rotation, 0),
            ("val_seed", val_seed, 0),
        ):
            if value < least:
                raise InputError(f"{name}: {value}; it must be at least {least}.")
        if not 0 <= val_fraction < 1:
            raise InputError(f"val_fraction: {val_fraction}; it must lie in [0, 1).")
        self.root = Path(root).expanduser()
        self.categories: Categories = categories
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.reader = CloudReader(strict_io, min_points, mesh_points, on_truth_mismatch)
        self.train_manifest = train_manifest
        self.test_manifest = test_manifest
        self.predict_path = predict_path
        self.val_normal = val_normal
        self.val_defective = val_defective
        self.view_settings = ViewSettings(val_points, val_view, val_rotation)
        self.val_fraction = val_fraction
        self.val_seed = val_seed
        self.category_names: tuple[str, ...] = ()
        self._cache_bytes = int(cache_gb * 2**30) // max(1, num_workers)
        self._records: dict[str, list[CloudRecord]] = {}
        self._view_sources: dict[str, str] = {}

    def index(self, split: Split) -> list[CloudRecord]:
        """Records of one split of the chosen categories, without looking at the other split."""
        raise NotImplementedError

    def folders(self) -> dict[str, Path]:
        """Folder of each category, chosen or not."""
        return category_folders(find_root(self.root, self.nested))

    def records(self, split: Literal["train", "val", "test", "predict"]) -> list[CloudRecord]:
        """Records of a split: to train on, to make validation clouds of, to test, to predict."""
        if split not in self._records:
            if split in ("train", "val"):
                found = self._split_records("train")
                require_unique(found)
                fraction = self.val_fraction if self.val_normal + self.val_defective else 0.0
                self._records["train"], self._records["val"] = hold_out(found, fraction, self.val_seed)
            elif split == "test":
                self._records["test"] = self._test_records()
            else:
                self._records["predict"] = self._predict_records()
        return self._records[split]

    def sources(self) -> dict[str, str]:
        """The scan that each test cloud, and each view that validates, derives from, by sample id.

        Of no test cloud before `setup("test")`, and of no view before `val_dataloader`.
        """
        return self._view_sources | {record.sample_id: record.source for record in self._records.get("test", ())}

    def file_of(self, sample_id: str) -> Path | None:
        """The file of a cloud that was indexed; None of validation clouds, which are made."""
        found = (r.path for records in self._records.values() for r in records if r.sample_id == sample_id)
        return next(found, None)

    def setup(self, stage: str | None = None) -> None:
        """Index what the stage needs; fit and validate do not look at the test clouds."""
        if stage == "predict" and self.predict_path is not None:
            self.records("predict")  # a machine that only predicts need not have the data set
            return
        self.category_names = self._known_categories()
        if stage in ("fit", "validate", None):
            self.records("train")
        if stage in ("test", None):
            self.records("test")
        if stage == "predict":
            self.records("predict")

    def train_dataloader(self) -> DataLoader[Sample]:
        """The training clouds, shuffled anew every epoch (seed it with Lightning's seed_everything)."""
        dataset = CloudDataset(
            self.records("train"), self.category_names, self.reader, self._cache_bytes, with_masks=False
        )
        return self._loader(dataset, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """The validation clouds; an empty list, which Lightning skips, if there are to be none."""
        if self.val_normal + self.val_defective == 0:
            return []
        dataset = self._validation
        self._view_sources = dataset.sources()
        return self._loader(dataset, self.eval_batch_size)

    def check_validation(self) -> None:
        """Raise InputError for training clouds that no validation clouds can be made of, before any training."""
        if type(self).val_dataloader is not PointCloudDataModule.val_dataloader:
            return  # a subclass with validation clouds of its own
        if self.val_defective:
            self._validation.check()

    @cached_property
    def _validation(self) -> ValidationDataset:
        return ValidationDataset(
            self.records("val"),
            self.category_names,
            self.reader,
            self.val_normal,
            self.val_defective,
            self.view_settings,
            self.val_seed,
            self._cache_bytes,
        )

    def test_dataloader(self) -> DataLoader[Sample]:
        """The test clouds in sorted order, with label and mask; processes share them out without repeats."""
        dataset = CloudDataset(self.records("test"), self.category_names, self.reader)
        # Lightning's own choice repeats clouds until the shares are even. Uneven ones are safe, as `test` runs without
        # the wrapper that talks at every batch, but each process must have one.
        shared = dist.is_available() and dist.is_initialized() and len(dataset) >= dist.get_world_size()
        sampler = UnrepeatedDistributedSampler(dataset, shuffle=False) if shared else None
        return self._loader(dataset, self.eval_batch_size, sampler=sampler)

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The clouds to predict, without masks."""
        dataset = CloudDataset(self.records("predict"), self.category_names, self.reader, with_masks=False)
        return self._loader(dataset, self.eval_batch_size)

    def _loader(
        self,
        dataset: CloudDataset | ValidationDataset,
        batch_size: int,
        shuffle: bool = False,
        sampler: Sampler[int] | None = None,
    ) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=RandomSampler(dataset) if shuffle else sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            # Persistent workers take a seed when they start. Drawn from the global stream it would be drawn once more
            # by a training that goes on, and everything after would differ.
            generator=torch.Generator().manual_seed(torch.initial_seed()) if self.num_workers else None,
        )

    def _known_categories(self) -> tuple[str, ...]:
        if self.train_manifest:
            return tuple(sorted({record.category for record in self._split_records("train")}))
        try:
            folders = self.folders()
        except InputError:
            if not self.test_manifest:
                raise
            return tuple(sorted({record.category for record in self._split_records("test")}))
        return tuple(choose_categories(folders, self.categories, self.root))

    def _split_records(self, split: Split) -> list[CloudRecord]:
        """Records of a split from its manifest or its folders; every category must have clouds to train on."""
        manifest = self.train_manifest if split == "train" else self.test_manifest
        if manifest:
            return read_manifest(manifest, self._manifest_root(), split, self.parse_stem, self.categories)
        records = self.index(split)
        wanted = choose_categories(self.folders(), self.categories, self.root)
        found = {record.category for record in records}
        empty = ", ".join(name for name in wanted if name not in found)
        if empty and (split == "train" or not found):
            raise InputError(
                f"{self.root}: no {split} clouds for {empty}. Add them in a folder `{split}` of the category, or leave "
                f"it out with `categories`."
            )
        if empty:
            warnings.warn(f"{self.root}: no {split} clouds for {empty}; results will not cover them.", stacklevel=2)
        return records

    def _manifest_root(self) -> Path:
        try:
            return find_root(self.root, self.nested)
        except InputError:
            return self.root

    def _test_records(self) -> list[CloudRecord]:
        records = self._split_records("test")
        require_unique(records)
        if self.train_manifest and self.test_manifest:
            trained = {record.path.resolve() for record in self._split_records("train")}
            if both := [record.path for record in records if record.path.resolve() in trained]:
                raise InputError(
                    f"{self.test_manifest}: {both[0]} (of {len(both)}) is among the training clouds of "
                    f"{self.train_manifest}, too. Leave it out of one of them."
                )
        untrained = sorted({record.category for record in records} - set(self._known_categories()))
        if untrained:
            raise InputError(
                f"{self.test_manifest or self.root}: test clouds of {', '.join(untrained)}, which have no training "
                f"clouds. Leave them out with `categories`."
            )
        unknown = [record for record in records if record.label == UNKNOWN]
        if unknown:
            raise InputError(
                f"{unknown[0].path}: nothing says whether it (and {len(unknown) - 1} others) is normal. Sort test "
                f"clouds into test/good and test/<defect>, or add masks; or score them with `predict`."
            )
        return records

    def _predict_records(self) -> list[CloudRecord]:
        if self.predict_path is None:
            return self._split_records("test")
        path = Path(self.predict_path).expanduser()
        files = [path] if path.is_file() else cloud_files(path, CLOUD_SUFFIXES, recursive=True) if path.is_dir() else []
        folder = path.parent if path.is_file() else path
        truth = [
            file for file in files if {part.lower() for part in file.relative_to(folder).parts} & set(TRUTH_FOLDERS)
        ]
        if truth:
            files = sorted(set(files) - set(truth))
            warnings.warn(
                f"predict_path: left out are {len(truth)} files of ground truth, the first {truth[0]}.", stacklevel=2
            )
        if not files:
            raise InputError(f"predict_path: {path} is no cloud and has none in it ({', '.join(CLOUD_SUFFIXES)}).")
        return [
            CloudRecord(
                file,
                folder.resolve().name,
                "test",
                UNKNOWN,
                "unknown",
                None,
                str(file),
                file.relative_to(folder).with_suffix("").as_posix(),
            )
            for file in files
        ]
