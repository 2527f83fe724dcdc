"""PCD files through pypcd4, with an eye on what is wrong with them.

pypcd4 needs no system library; open3d would need X11 and OpenGL, gives an empty cloud for a broken file, and zeros for
coordinates of 8 bytes and for rows that an ASCII file has lost.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import ValidationError
from pypcd4.pypcd4 import Encoding, PointCloud

from anomaly3d.errors import InputError, reason

_REMEDY = "Unpack or export the file again."


def read_pcd(path: Path) -> Float[np.ndarray, "N 3"]:
    """Points in the file's order as float64, non-finite ones included.

    Raises InputError naming what is wrong for a file that is truncated, empty or no PCD.
    """
    try:
        cloud = PointCloud.from_path(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a parser meets in a file that is no PCD
        why = "broken header" if isinstance(error, ValidationError) else reason(error)
        raise InputError(f"{path}: no PCD file, or a truncated one ({why}). {_REMEDY}") from error
    named = {field.lower(): field for field in cloud.fields}
    if not {"x", "y", "z"} <= set(named):
        raise InputError(f"{path}: a PCD with the fields {' '.join(cloud.fields)}; x, y and z are needed.")
    points, promised = np.atleast_1d(cloud.pc_data), cloud.metadata.points
    if promised == 0:
        raise InputError(f"{path}: its header says 0 points. {_REMEDY}")
    if len(points) != promised:
        raise InputError(f"{path}: truncated: {len(points)} of the {promised} points in its header. {_REMEDY}")
    return np.stack([points[named[axis]].reshape(promised).astype(np.float64) for axis in "xyz"], axis=1)


def write_pcd(path: str | Path, xyz: Float[np.ndarray, "N 3"]) -> None:
    """Write a binary PCD with the fields x, y, z: 8 bytes each for float64 input, otherwise 4."""
    xyz = np.asarray(xyz)
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise ValueError(f"xyz must be (N, 3), got {xyz.shape}")
    kind = np.float64 if xyz.dtype == np.float64 else np.float32
    PointCloud.from_points(xyz.astype(kind), ("x", "y", "z"), (kind, kind, kind)).save(path, Encoding.BINARY)
