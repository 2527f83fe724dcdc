"""Validation clouds made from the training clouds: new views of them, some with synthetic defects.

They drive early stopping, threshold selection and sweeps; the test folder is never read. A view is a random part of a
cloud's points, each moved along the surface towards a neighbour, so that no point is one the model has seen; where test
clouds are scans from one side, only what one camera sees of it; and turned by a random rotation. Normal and defective
clouds are made alike but for the defect.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float
from torch.utils.data import Dataset

from anomaly3d.data.dataset import Cloud, CloudCache, CloudReader, Sample
from anomaly3d.data.index import CloudRecord
from anomaly3d.data.io import centred
from anomaly3d.errors import InputError, about

if TYPE_CHECKING:
    from anomaly3d.data.synthetic.defects import Kind

View = Literal["full", "single"]

KINDS: tuple[Kind, ...] = ("bulge", "concavity", "hole", "broken", "bending", "crak")
HOLD_OUT_FROM = 10
"""Clouds a category must have for some of them to be held out of training [ours]."""

_NEIGHBOURS = 16
_DEFECT_POINTS = 500
_CAMERAS, _LEAST_SEEN = 20, 0.1
"""Cameras that are tried for one that sees this share of a cloud's points: a scan shows nothing from behind [ours]."""


@dataclass(frozen=True)
class ViewSettings:
    """How a validation cloud is made.

    Args:
        points: points a cloud has at most before a defect [ours].
        view: "full", or "single" for what one camera sees from a random side.
        rotation: largest angle, in degrees, of the random rotation; 180 gives any pose.
    """

    points: int = 20_000
    view: View = "full"
    rotation: float = 5.0


def hold_out(records: Sequence[CloudRecord], fraction: float, seed: int) -> tuple[list[CloudRecord], list[CloudRecord]]:
    """Split training records into those to train on and those to validate with, category by category.

    Scans are held out whole: a copy or a cut of one goes where it goes. Where a category has fewer than
    `HOLD_OUT_FROM` scans, or `fraction` is 0, all of them serve both purposes.
    """
    train, held = [], []
    for category in dict.fromkeys(record.category for record in records):
        members = [record for record in records if record.category == category]
        scans = list(dict.fromkeys(record.source for record in members))
        if len(scans) < HOLD_OUT_FROM or fraction == 0:
            train += members
            held += members
            continue
        count = min(max(1, round(fraction * len(scans))), len(scans) - 1)
        drawn = _generator(seed, category).choice(len(scans), count, replace=False)
        chosen = {scans[i] for i in drawn}
        train += [record for record in members if record.source not in chosen]
        held += [record for record in members if record.source in chosen]
    return train, held


class ValidationDataset(Dataset[Sample]):
    """Per category `normal` normal and `defective` defective views of its clouds, the same ones for one seed.

    Args:
        records: normal clouds to make views of.
        category_names: names that `Sample.category` indexes.
        reader: how to read.
        normal: normal views per category.
        defective: defective views per category; the kinds take turns.
        settings: how views are made.
        seed: of everything random.
        cache_bytes: memory for clouds already made (per worker).
    """

    def __init__(
        self,
        records: Sequence[CloudRecord],
        category_names: Sequence[str],
        reader: CloudReader,
        normal: int,
        defective: int,
        settings: ViewSettings,
        seed: int,
        cache_bytes: int = 0,
    ) -> None:
        self.category_names = tuple(category_names)
        self.reader = reader
        self.settings = settings
        self.seed = seed
        self.cache = CloudCache(cache_bytes)
        self._plan: list[tuple[CloudRecord, int]] = []
        for category in self.category_names:
            members = [record for record in records if record.category == category]
            if not members:
                raise InputError(f"{category}: no training cloud to make validation clouds of. Add some to `train`.")
            self._plan += [(members[i % len(members)], i) for i in range(normal + defective)]
        self.normal = normal

    def __len__(self) -> int:
        return len(self._plan)

    def sources(self) -> dict[str, str]:
        """The scan that each view is made of, by the view's sample id."""
        return {self._key(record, turn): record.source for record, turn in self._plan}

    def _key(self, record: CloudRecord, turn: int) -> str:
        return f"{record.category}/val/{'defective' if turn >= self.normal else 'good'}{turn}"

    def check(self) -> None:
        """Make a defective view of each category's smallest file: one that is too small should stop no training late.

        Raises InputError, which names the file, where no defect finds a place.
        """
        for category in self.category_names:
            defective = [
                (record.path.stat().st_size, index)
                for index, (record, turn) in enumerate(self._plan)
                if record.category == category and turn >= self.normal
            ]
            if defective:
                _ = self[min(defective)[1]]

    def __getitem__(self, index: int) -> Sample:
        record, turn = self._plan[index]
        category = self.category_names.index(record.category)
        defective = turn >= self.normal
        # Categories start with different kinds, so that a few clouds each make a varied set.
        first = zlib.crc32(record.category.encode())
        kind = KINDS[(first + turn - self.normal) % len(KINDS)] if defective else None
        key = self._key(record, turn)
        rng = _generator(self.seed, record.category, turn + 1)
        with about(str(record.path)):
            cloud = self.cache.get(
                key, lambda: make_view(self.reader(record, with_mask=False).xyz, kind, rng, self.settings)
            )
        return Sample(cloud, key, category, int(defective))


def make_view(
    xyz: Float[np.ndarray, "N 3"], kind: Kind | None, rng: np.random.Generator, settings: ViewSettings
) -> Cloud:
    """A new view of a cloud, with a defect of the given kind unless it is None.

    Where a kind finds no place on the cloud the next one takes its turn. Raises InputError if none does.
    """
    import torch

    from anomaly3d.ops.normals import estimate_normals

    budget = settings.points * (2 if settings.view == "single" else 1)
    part = rng.permutation(len(xyz))[: min(budget, max(len(xyz) * 4 // 5, 1))]
    points = xyz[part].astype(np.float64)
    normals = estimate_normals(torch.from_numpy(points).float(), min(_NEIGHBOURS, len(points))).double().numpy()
    points, normals = _seen(points, normals, rng, settings.view)
    points = _slide(points, rng)
    mask = np.zeros(len(points), dtype=bool)
    if kind is not None:
        points, mask = _defective(points, normals, kind, rng)
    return Cloud(centred(points @ _rotation(rng, settings.rotation).T), np.asarray(mask, dtype=bool))


def _defective(
    points: Float[np.ndarray, "N 3"], normals: Float[np.ndarray, "N 3"], kind: Kind, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "M 3"], Bool[np.ndarray, " M"]]:
    from anomaly3d.data.synthetic.defects import DefectError, apply_defect

    first = KINDS.index(kind)
    why = f"{len(points)} points are left of a view of it, and {_DEFECT_POINTS} are needed"
    if len(points) >= _DEFECT_POINTS:
        for turn in KINDS[first:] + KINDS[:first]:
            try:
                return apply_defect(points, normals, turn, rng)
            except DefectError as error:
                why = str(error).rstrip(".")
    raise InputError(
        f"no synthetic defect finds a place on it for validation: {why}. Set `data.val_defective` to 0, or leave its "
        "category out."
    )


def _seen(
    points: Float[np.ndarray, "N 3"], normals: Float[np.ndarray, "N 3"], rng: np.random.Generator, view: View
) -> tuple[Float[np.ndarray, "M 3"], Float[np.ndarray, "M 3"]]:
    from anomaly3d.data.synthetic.surface import Surface
    from anomaly3d.data.synthetic.visibility import directions, orient_outward, visible_points

    spacing = Surface(points, normals, 1.0).spacing
    normals = orient_outward(points, normals, spacing)
    if view == "full":
        return points, normals
    for _ in range(_CAMERAS):
        seen: Bool[np.ndarray, " N"] = visible_points(points, normals, directions(1, rng)[0], spacing)
        if seen.mean() >= _LEAST_SEEN:
            return points[seen], normals[seen]
    raise InputError(
        f"none of {_CAMERAS} cameras sees {_LEAST_SEEN:.0%} of its points. `data.val_view` single is for training "
        "clouds that are complete; give full for those that are scans from one side."
    )


def _slide(points: Float[np.ndarray, "N 3"], rng: np.random.Generator) -> Float[np.ndarray, "N 3"]:
    """Move every point up to half the way to one of its nearest neighbours; where they coincide it stays."""
    from scipy.spatial import KDTree

    count = min(7, len(points))  # the point itself, and six others
    if count < 2:
        return points
    neighbours = np.asarray(KDTree(points).query(points, count)[1])
    partner = neighbours[np.arange(len(points)), rng.integers(1, count, len(points))]
    return points + rng.uniform(0, 0.5, (len(points), 1)) * (points[partner] - points)


def _rotation(rng: np.random.Generator, degrees: float) -> Float[np.ndarray, "3 3"]:
    """Rotation about a random axis by an angle of at most `degrees`; at 180 uniform over all rotations."""
    from scipy.spatial.transform import Rotation

    if degrees >= 180:
        quaternion = rng.normal(size=4)
        return Rotation.from_quat(quaternion).as_matrix()
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(rng.uniform(0, degrees))).as_matrix()


def _generator(seed: int, *key: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the key only; str hashes differ between processes, CRCs do not."""
    return np.random.default_rng([seed, *(zlib.crc32(str(part).encode()) for part in key)])
