"""Reading clouds: one float64 array in the file's order and units, then finite points, then centred float32.

Centring comes before the cast: coordinates of a million with detail of a millimetre (a surveyor's grid) keep the detail
where the file has it.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32

from anomaly3d.data.pcd import read_pcd
from anomaly3d.data.text_table import read_table, refuse_empty
from anomaly3d.errors import InputError

MESH_SUFFIXES = (".ply", ".obj", ".stl")
_TEXT_SUFFIXES = (".xyz", ".txt", ".csv")
CLOUD_SUFFIXES = (".pcd", *MESH_SUFFIXES, *_TEXT_SUFFIXES, ".npy")
_MOST_COLUMNS = 64
"""A table with more is no cloud but an image of depth [ours]."""
_FAR = 1000.0
"""In distances of the median point; one that lies farther out is none of the object's [ours]."""


def read_points(path: str | Path, mesh_points: int = 50_000) -> Float[np.ndarray, "N 3"]:
    """Points as the file has them: float64, file units and order, not centred, non-finite ones included.

    Suffixes: .pcd, .ply, .obj, .stl, .npy, and .xyz, .txt, .csv, whose columns x, y and z are those that a header names
    so, else the first three. Of a mesh `mesh_points` are drawn uniformly from the surface, always the same ones.
    Raises InputError for a file that cannot be read, or holds no points.
    """
    path = Path(path)
    refuse_empty(path)
    suffix = path.suffix.lower()
    if suffix == ".pcd":
        points = read_pcd(path)
    elif suffix in MESH_SUFFIXES:
        points = _read_geometry(path, mesh_points)
    elif suffix in _TEXT_SUFFIXES:
        points = read_table(path, ("x", "y", "z"))
    elif suffix == ".npy":
        points = read_array(path)
    else:
        raise InputError(f"{path}: clouds are read from {', '.join(CLOUD_SUFFIXES)}; convert the file to one of them.")
    if points.ndim != 2 or not 3 <= points.shape[1] <= _MOST_COLUMNS or len(points) == 0:
        raise InputError(f"{path}: an array of shape {points.shape}; export it with columns x, y and z.")
    return points[:, :3].astype(np.float64)


def finite_rows(points: Float[np.ndarray, "N 3"], path: Path, strict: bool) -> Bool[np.ndarray, " N"]:
    """Which points are finite, with a warning (an InputError if `strict`) when some are not."""
    finite = np.asarray(np.isfinite(points).all(axis=1))
    lost = len(points) - int(finite.sum())
    if lost == len(points):
        raise InputError(f"{path}: none of its {lost} points is finite. Export the cloud again.")
    if lost:
        message = f"{path}: {lost} of {len(points)} points are not finite"
        if strict:
            raise InputError(f"{message}. Remove them, or set `strict_io` to false to have them dropped.")
        warnings.warn(f"{message} and were dropped; they have no score.", stacklevel=2)
    return finite


def refuse_stray(points: Float[np.ndarray, "N 3"], path: Path) -> None:
    """Raise InputError where a point lies so far from all others that the cloud's size means nothing."""
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    typical, farthest = float(np.median(distance)), float(distance.max())
    if farthest > _FAR * typical > 0:
        where = ", ".join(f"{value:.6g}" for value in points[distance.argmax()])
        raise InputError(
            f"{path}: the point at {where} lies {farthest / typical:.3g} times as far out as the median one, so the "
            "cloud's size means nothing. Remove it."
        )


def centred(points: Float[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
    """Subtract the mean in float64, then cast to float32."""
    return (points - points.mean(axis=0, dtype=np.float64)).astype(np.float32)


def read_array(path: Path) -> np.ndarray:
    """A numeric .npy array."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file of numbers ({error}). Write it with numpy.save.") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: an array of {array.dtype}; numbers are needed.")
    return array


def _read_geometry(path: Path, mesh_points: int) -> Float[np.ndarray, "N 3"]:
    import trimesh

    try:
        geometry = trimesh.load(path, process=False)
        if isinstance(geometry, trimesh.Scene):
            geometry = trimesh.load(path, process=False, force="mesh")
        points = np.asarray(geometry.vertices)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # trimesh's parsers raise whatever the broken file makes them stumble over
        raise InputError(f"{path}: trimesh cannot read it ({error}). Export the file again.") from error
    if path.suffix.lower() == ".ply":
        _refuse_cut_off(path, len(points), len(getattr(geometry, "faces", ())))
    if len(points) == 0:
        raise InputError(f"{path}: no points in it. Export the file again.")
    if not isinstance(geometry, trimesh.Trimesh) or len(geometry.faces) == 0:
        return points
    if not np.isfinite(points).all() or not geometry.area > 0:
        raise InputError(f"{path}: a mesh without area, or with vertices that are not finite. Repair it.")
    return trimesh.sample.sample_surface(geometry, mesh_points, seed=0)[0]


def _refuse_cut_off(path: Path, points: int, faces: int) -> None:
    """Raise InputError where a .ply holds less than its header promises: of text trimesh reads what there is."""
    with path.open("rb") as file:
        header = file.read(1 << 16).partition(b"end_header")[0].decode("latin-1")
    promised = {name: int(count) for name, count in re.findall(r"^element (\w+) (\d+)\s*$", header, re.MULTILINE)}
    for name, found in (("vertex", points), ("face", faces)):
        # Polygons are read as triangles, of which there are more.
        if found < promised.get(name, 0):
            raise InputError(
                f"{path}: cut off, {found} of the {promised[name]} elements {name} that its header names. Copy or "
                "export it again."
            )
