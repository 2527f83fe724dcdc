"""Clouds with their scores as files that any viewer of point clouds opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anomaly3d.files import replacing
from anomaly3d.report.colours import heat_colours


def save_coloured_ply(path: Path | str, xyz: ArrayLike, scores: ArrayLike) -> Path:
    """Write a cloud as binary PLY: x, y, z (float32), red, green, blue, alpha, and the score itself as float32 `score`.

    Args:
        path: file to write; replaced if there.
        xyz: (N, 3) points in file units.
        scores: (N,) finite scores.

    Returns:
        The path.

    Raises:
        ValueError: shapes do not fit, or a score is not finite.
    """
    import trimesh

    points, values = np.asarray(xyz, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3 or values.shape != (len(points),) or not len(points):
        raise ValueError(f"{path}: {values.shape} scores do not fit points of shape {points.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: a score is NaN or infinite")
    # A trimesh.PointCloud has no attributes of its own, but its exporter writes them.
    cloud: Any = trimesh.PointCloud(points, colors=heat_colours(values, as_bytes=True))
    cloud.vertex_attributes = {"score": values}
    with replacing(path) as temporary:
        temporary.write_bytes(cloud.export(file_type="ply"))
    return Path(path)
