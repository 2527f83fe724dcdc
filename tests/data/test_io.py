from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from trimesh.exchange.ply import export_ply

from anomaly3d.data.io import centred, finite_rows, read_points
from anomaly3d.data.pcd import write_pcd
from anomaly3d.errors import InputError

PLY = """ply
format ascii 1.0
element vertex {count}
property double x
property double y
property double z
end_header
"""


def write_cloud(path: Path, xyz: np.ndarray) -> Path:
    if path.suffix == ".pcd":
        write_pcd(path, xyz)
    elif path.suffix == ".npy":
        np.save(path, xyz)
    elif path.suffix == ".ply":
        rows = "\n".join(" ".join(repr(float(value)) for value in row) for row in xyz)
        path.write_text(PLY.format(count=len(xyz)) + rows + "\n")
    elif path.suffix == ".obj":
        path.write_text("\n".join("v " + " ".join(repr(float(value)) for value in row) for row in xyz) + "\n")
    else:
        np.savetxt(path, xyz, delimiter=" " if path.suffix == ".xyz" else ",", fmt="%.17g")
    return path


def read_cloud(path: Path, strict: bool = False) -> np.ndarray:
    """What a data set's reader makes of a file."""
    points = read_points(path)
    return centred(points[finite_rows(points, path, strict)])


@pytest.mark.parametrize("suffix", [".pcd", ".ply", ".obj", ".xyz", ".txt", ".csv", ".npy"])
def test_far_coordinates_keep_their_detail(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    """Detail of a millimetre at a million metres is lost in float32 but for centring first."""
    detail = rng.normal(size=(100, 3)) * 0.01
    far = detail + np.array([500_000.0, 5_400_000.0, 200.0])
    xyz = read_cloud(write_cloud(tmp_path / f"a{suffix}", far))
    assert xyz.dtype == np.float32
    np.testing.assert_allclose(xyz, detail - detail.mean(axis=0), atol=3e-9 + 2e-9)
    assert np.abs((far.astype(np.float32) - far).ravel()).max() > 0.01


@pytest.mark.parametrize("suffix", [".pcd", ".ply", ".xyz", ".txt", ".npy"])
def test_non_finite_points_are_dropped_counted_or_refused(
    tmp_path: Path, rng: np.random.Generator, suffix: str
) -> None:
    xyz = rng.normal(size=(30, 3))
    xyz[3, 1], xyz[17] = np.nan, np.inf
    path = write_cloud(tmp_path / f"a{suffix}", xyz)
    with pytest.warns(UserWarning, match=r"2 of 30 points are not finite"):
        read = read_cloud(path)
    kept = np.delete(xyz, [3, 17], axis=0)
    np.testing.assert_allclose(read, kept - kept.mean(axis=0), atol=1e-6)
    with pytest.raises(InputError, match="strict_io"):
        read_cloud(path, strict=True)


def test_a_cloud_without_finite_points_is_an_error(tmp_path: Path) -> None:
    write_pcd(tmp_path / "a.pcd", np.full((5, 3), np.nan, np.float32))
    with pytest.raises(InputError, match="none of its 5 points"):
        read_cloud(tmp_path / "a.pcd")


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl"])
def test_meshes_are_sampled_on_the_surface_the_same_way_each_time(tmp_path: Path, suffix: str) -> None:
    mesh = trimesh.creation.box(extents=(2, 4, 6))
    path = tmp_path / f"a{suffix}"
    mesh.export(path)
    points = read_points(path, mesh_points=5000)
    assert points.shape == (5000, 3)
    # On a box one coordinate of every surface point is at its limit, and areas share out the points.
    at_limit = np.isclose(np.abs(points), [1, 2, 3], atol=1e-5)
    assert at_limit.any(axis=1).all()
    np.testing.assert_allclose(at_limit.mean(axis=0), np.array([24, 12, 8]) / 44, atol=0.03)
    np.testing.assert_array_equal(points, read_points(path, mesh_points=5000))


def test_several_objects_in_one_file_are_one_mesh(tmp_path: Path) -> None:
    left, right = trimesh.creation.box(), trimesh.creation.box().apply_translation([10, 0, 0])
    trimesh.Scene([left, right]).export(tmp_path / "a.obj")
    points = read_points(tmp_path / "a.obj", mesh_points=1000)
    assert 400 < (points[:, 0] > 5).sum() < 600


def test_extra_columns_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("x y z nx ny nz\n1 2 3 0 0 1\n4 5 6 0 0 1\n")
    np.testing.assert_array_equal(read_points(tmp_path / "a.xyz"), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("suffix", [".pcd", ".ply", ".obj", ".stl", ".xyz", ".txt", ".npy"])
@pytest.mark.parametrize(("content", "says"), [(b"", "7-zip"), (b"rubbish\n", r"a\.")])
def test_empty_and_broken_files_are_named(tmp_path: Path, suffix: str, content: bytes, says: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        read_cloud(path)
    assert str(path) in str(raised.value)


def test_truncated_ply_is_an_error(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.ply"
    trimesh.PointCloud(rng.normal(size=(100, 3))).export(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"a\.ply"):
        read_cloud(path)


@pytest.mark.parametrize("mesh", [False, True])
def test_a_ply_of_text_that_ends_early_is_an_error(tmp_path: Path, mesh: bool) -> None:
    path, whole = tmp_path / "a.ply", trimesh.creation.icosphere(2)
    shape = whole if mesh else trimesh.PointCloud(whole.vertices)
    text = export_ply(shape, encoding="ascii").decode().splitlines(keepends=True)
    path.write_text("".join(text))
    assert len(read_points(path)) == (50_000 if mesh else len(whole.vertices))
    path.write_text("".join(text[:-50]))
    with pytest.raises(InputError, match=r"a\.ply: cut off, \d+ of the \d+ elements"):
        read_points(path)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 2)), "shape"),
        (np.zeros(7), "shape"),
        (np.zeros((0, 3)), "shape"),
        (np.zeros((48, 640)), "shape"),
        (np.array([["a"] * 3]), "numbers"),
    ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path: Path, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=says):
        read_points(tmp_path / "a.npy")


def test_mesh_without_area_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(InputError, match="without area"):
        read_points(tmp_path / "a.obj")


def test_unknown_suffix_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.las").write_text("x")
    with pytest.raises(InputError, match=r"\.pcd, \.ply"):
        read_points(tmp_path / "a.las")
    with pytest.raises(InputError, match="no such file"):
        read_points(tmp_path / "b.pcd")
