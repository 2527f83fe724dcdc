"""Ground truth of points: which row of a truth file is which point of the cloud."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from anomaly3d.data.io import read_array
from anomaly3d.data.text_table import read_table, refuse_empty
from anomaly3d.errors import InputError
from anomaly3d.ops.tree import search

TOLERANCE = 1e-4
"""Largest distance between a point and its row, as a fraction of the cloud's diagonal [ours].

Text with 4 decimals of a cloud of unit size needs 1e-4; the spacing of a million points on a surface is 1e-3.
"""
SURPLUS = 5
"""Rows a truth file may hold beyond the cloud's points [ours]; five of Anomaly-ShapeNet's files have one."""

MASK_SUFFIXES = (".txt", ".csv", ".npy")
TRUTH_FOLDERS = ("masks", "mask", "gt", "ground_truth")
"""Names of folders of ground truth, in any case; of several the first counts."""


class TruthMismatch(InputError):
    """The rows of a truth file are not the points of the cloud."""


@dataclass(frozen=True)
class Truth:
    """A truth file: a label per row and, unless the rows follow the cloud's file, where each row's point lies."""

    labels: Bool[np.ndarray, " R"]
    xyz: Float[np.ndarray, "R 3"] | None


def read_truth(path: Path) -> Truth:
    """Read x, y, z, label rows (text with any delimiter, or .npy), or one label per row in the cloud's order.

    Labels are whole numbers, 0 for normal. Rows with non-finite coordinates are left out. Raises InputError otherwise.
    """
    refuse_empty(path)
    table = read_array(path) if path.suffix.lower() == ".npy" else read_table(path)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] not in (1, 4):
        raise InputError(
            f"{path}: {table.shape[-1]} columns; ground truth has four (x y z label), or one label per point in the "
            f"cloud's order."
        )
    if len(table) == 0:
        raise InputError(f"{path}: no rows. Ground truth has one row per point.")
    labels = table[:, -1].astype(np.float64)
    if not (np.isfinite(labels) & (labels >= 0) & (labels == np.round(labels))).all():
        raise InputError(f"{path}: its last column is no label (0 normal, 1 anomalous). Ground truth is x y z label.")
    if table.shape[1] == 1:
        return Truth(labels > 0, None)
    finite = np.isfinite(table[:, :3]).all(axis=1)
    return Truth(labels[finite] > 0, table[finite, :3].astype(np.float64))


def match_truth(
    truth: Truth, path: Path, points: Float[np.ndarray, "N 3"], finite: Bool[np.ndarray, " N"]
) -> Bool[np.ndarray, " M"]:
    """Mask of the M finite points of a cloud, in the file's order.

    Rows in the order of the points are taken as they come, rounded to few decimals or not. Otherwise every point takes
    the label of the row nearest to it, which must lie within `TOLERANCE`; of rows at the same place an anomalous one
    wins. A few surplus rows are allowed; and so are fewer rows than points when points coincide.

    Args:
        truth: the content of the truth file.
        path: its path, for messages.
        points: all points of the cloud's file, not centred.
        finite: which of them are finite.

    Raises:
        TruthMismatch: if points have no row, or there are too many rows.
    """
    if truth.xyz is None:
        if len(truth.labels) != len(points):
            raise TruthMismatch(
                f"{path}: {len(truth.labels)} labels for a cloud of {len(points)} points. One label per row needs the "
                f"cloud's length and order; add the columns x y z to have rows matched by place."
            )
        return truth.labels[finite]
    points = points[finite]
    tolerance = TOLERANCE * float(np.linalg.norm(np.ptp(points, axis=0))) or TOLERANCE
    rounding = _rounding(truth.xyz)
    # Rows that stand where their points do may be rounded coarsely, if not beyond recognition.
    in_order = max(tolerance, min(rounding, 50 * tolerance))
    if len(truth.xyz) == len(points) and np.abs(truth.xyz - points).max() <= in_order:
        return truth.labels
    surplus = len(truth.xyz) - len(points)
    if surplus > SURPLUS:
        raise TruthMismatch(
            f"{path}: {len(truth.xyz)} rows for a cloud of {len(points)} points: {surplus} too many. It belongs to "
            f"another cloud."
        )
    to_anomalous = _nearest(truth.xyz[truth.labels], points, tolerance)
    to_normal = _nearest(truth.xyz[~truth.labels], points, tolerance)
    missing = int(np.isinf(np.minimum(to_anomalous, to_normal)).sum())
    if missing and rounding > max(tolerance, _rounding(points)):
        raise TruthMismatch(
            f"{path}: its coordinates are rounded by up to {rounding:.2g}, too coarsely to find rows by their place "
            f"(within {tolerance:.2g}, {TOLERANCE:g} of the cloud's diagonal). Write more decimals, or one label per "
            f"point in the cloud's order."
        )
    if missing:
        raise TruthMismatch(
            f"{path}: {missing} of the cloud's {len(points)} points have no row within {tolerance:.3g} "
            f"({TOLERANCE:g} of its diagonal; the file has {len(truth.xyz)} rows). It belongs to another cloud, or to "
            f"other units or another pose of this one."
        )
    return to_anomalous <= to_normal


def _rounding(rows: Float[np.ndarray, "R 3"]) -> float:
    """By how much coordinates of a file may be rounded: half a unit of the last decimal that any of them has."""
    for decimals in range(7 if len(rows) else 0):
        scaled = rows * 10**decimals
        if np.abs(scaled - np.round(scaled)).max(initial=0) < 1e-6:
            return 0.5 * 10**-decimals * (1 + 1e-6)
    return 0.0


def _nearest(
    rows: Float[np.ndarray, "R 3"], points: Float[np.ndarray, "N 3"], tolerance: float
) -> Float[np.ndarray, " N"]:
    """Distance of each point to the nearest row; infinite beyond the tolerance."""
    if len(rows) == 0:
        return np.full(len(points), np.inf)
    # Rounding must not push a row that lies exactly at the tolerance over it.
    return search(KDTree(rows, balanced_tree=False), points, reach=tolerance * (1 + 1e-9))[0]
