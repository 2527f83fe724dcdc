from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from anomaly3d.data.pcd import read_pcd, write_pcd
from anomaly3d.errors import InputError

HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS {fields}
SIZE {size}
TYPE {kind}
COUNT {count}
WIDTH {points}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {points}
DATA {data}
"""


def header(points: int, data: str, fields="x y z", size="4 4 4", kind="F F F", count="1 1 1") -> bytes:
    return HEADER.format(points=points, data=data, fields=fields, size=size, kind=kind, count=count).encode()


def by_open3d(open3d: ModuleType, path: Path) -> np.ndarray:
    return np.asarray(
        open3d.io.read_point_cloud(str(path), remove_nan_points=False, remove_infinite_points=False).points
    )


@pytest.mark.parametrize("ascii_", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_open3d_writes(
    open3d: ModuleType, tmp_path: Path, rng: np.random.Generator, ascii_: bool, compressed: bool
) -> None:
    xyz = rng.normal(size=(300, 3))
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(xyz))
    cloud.normals = open3d.utility.Vector3dVector(rng.normal(size=(300, 3)))
    cloud.colors = open3d.utility.Vector3dVector(rng.random((300, 3)))
    path = tmp_path / "a.pcd"
    open3d.io.write_point_cloud(str(path), cloud, write_ascii=ascii_, compressed=compressed)
    np.testing.assert_allclose(
        read_pcd(path), by_open3d(open3d, path), rtol=1e-6, atol=1e-9
    )  # open3d reads text as double


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_written_is_read(open3d: ModuleType, tmp_path: Path, rng: np.random.Generator, dtype: type) -> None:
    xyz = rng.normal(size=(50, 3)).astype(dtype)
    xyz[7] = np.nan
    write_pcd(tmp_path / "a.pcd", xyz)
    if dtype is np.float32:  # open3d gives zeros for 8-byte coordinates
        np.testing.assert_array_equal(by_open3d(open3d, tmp_path / "a.pcd"), xyz.astype(np.float64))
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), xyz.astype(np.float64))


def test_padding_and_mixed_types(tmp_path: Path, rng: np.random.Generator) -> None:
    """Fields in another order, unnamed padding, an array field, integers and doubles."""
    dtype = np.dtype([("p", "u1", 3), ("z", "<f8"), ("q", "u1"), ("h", "<f4", 5), ("x", "<f4"), ("y", "<i2")])
    table = np.zeros(20, dtype)
    for name in "xyz":
        table[name] = rng.integers(-100, 100, 20)
    path = tmp_path / "a.pcd"
    head = header(20, "binary", "_ z _ hist x y", "1 8 1 4 4 2", "U F U F F I", "3 1 1 5 1 1")
    path.write_bytes(head + table.tobytes() + b"trailing bytes")
    np.testing.assert_array_equal(read_pcd(path), np.stack([table[name] for name in "xyz"], axis=1))


def test_ascii_columns_follow_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.pcd"
    head = header(2, "ascii", "hist z y x", "4 4 4 4", "F F F F", "2 1 1 1")
    path.write_bytes(head + b"9 9 3 2 1\n9 9 nan 5 4\n")
    np.testing.assert_array_equal(read_pcd(path), [[1, 2, 3], [4, 5, np.nan]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "broken header"),
        (b"garbage\n" * 5, "broken header"),
        (b"\x00" * 20_000, "broken header"),
        (header(5, "binary") + b"\0" * 59, "truncated"),
        (header(5, "binary") + b"\0" * 48, "truncated: 4 of the 5 points"),
        (header(5, "ascii") + b"1 2 3\n" * 4, "truncated: 4 of the 5 points"),
        (header(2, "ascii") + b"1 2 3\n1 2 a\n", "'a'"),
        (header(0, "binary"), "0 points"),
        (header(5, "zip"), "broken header"),
        (header(5, "binary", "a b c") + b"\0" * 60, "x, y and z are needed"),
        (header(5, "binary", size="4 4"), "no PCD file"),
        (header(5, "binary").replace(b"POINTS 5", b"POINTS five"), "no PCD file"),
    ],
)
def test_broken_files_are_named_with_a_reason(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.pcd"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        read_pcd(path)
    assert str(path) in str(raised.value)


def test_broken_compressed_file_is_an_error(open3d: ModuleType, tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.pcd"
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(rng.normal(size=(300, 3))))
    open3d.io.write_point_cloud(str(path), cloud, compressed=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.pcd"):
        read_pcd(path)


def test_write_refuses_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        write_pcd(tmp_path / "a.pcd", np.zeros((4, 2)))


def test_fields_may_be_capitals(tmp_path: Path) -> None:
    (tmp_path / "a.pcd").write_bytes(header(2, "ascii", fields="X Y Z") + b"1 2 3\n4 5 6\n")
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), [[1, 2, 3], [4, 5, 6]])
