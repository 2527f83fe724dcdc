from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.data.text_table import read_table
from anomaly3d.errors import InputError

ROWS = np.array([[1.5, -2.0, 3e-3, 0.0], [4.0, 5.25, -6.0, 1.0]])


def write(path: Path, delimiter: str, before: str = "", after: str = "") -> Path:
    lines = [delimiter.join(repr(float(value)) for value in row) for row in ROWS]
    path.write_text(before + "\n".join(lines) + "\n" + after)
    return path


@pytest.mark.parametrize("delimiter", [",", ", ", " ", "   ", "\t", ";", "; "])
@pytest.mark.parametrize("before", ["", "x y z label\n", "x,y,z,label\n", "# comment\n\n", "\ufeff", "\n\n"])
def test_delimiter_and_header_are_found(tmp_path: Path, delimiter: str, before: str) -> None:
    path = write(tmp_path / "a.txt", delimiter, before, after="\n\n")
    np.testing.assert_array_equal(read_table(path), ROWS)


@pytest.mark.parametrize(
    "header",
    [
        *("id,x,y,z", '"ID", "X", "Y", "Z"', "# id x y z", "//id;X;Y;Z", "exported today\nid\tx\ty\tz\n"),
        *(",x,y,z", "id,x [mm],y [mm],z [mm]", "Point ID,X (m),Y (m),Z (m)", "id,x,y,z\n# scanned twice"),
    ],
)
def test_columns_that_are_asked_for_by_name_come_first(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.csv", ",", header + "\n")
    np.testing.assert_array_equal(read_table(path, ("x", "y", "z")), ROWS[:, [1, 2, 3, 0]])
    np.testing.assert_array_equal(read_table(path), ROWS)


@pytest.mark.parametrize("header", ["", "a b c d", "y,z,label,w", "x,y,z,label"])
def test_columns_stand_where_no_header_names_them_all(tmp_path: Path, header: str) -> None:
    np.testing.assert_array_equal(read_table(write(tmp_path / "a.csv", ",", header + "\n"), ("x", "y", "z")), ROWS)


@pytest.mark.parametrize("header", ["x,y,z", "x,y,z,label,more", "Point ID X Y Z"])
def test_a_header_that_does_not_fit_its_columns_is_warned_of(tmp_path: Path, header: str) -> None:
    with pytest.warns(UserWarning, match=r"a\.csv: a header of \d names for 4 columns"):
        found = read_table(write(tmp_path / "a.csv", ",", header + "\n"), ("x", "y", "z"))
    np.testing.assert_array_equal(found, ROWS)


def test_delimiter_does_not_come_from_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "Anomaly-ShapeNet" / "GT"
    folder.mkdir(parents=True)
    np.testing.assert_array_equal(read_table(write(folder / "a.txt", " ")), ROWS)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.lists(st.floats(width=64), min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(",; \t")
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]], delimiter: str) -> None:
    path = tmp_path_factory.mktemp("table") / "a.txt"
    path.write_text("\n".join(delimiter.join(repr(value) for value in row) for row in rows))
    np.testing.assert_array_equal(read_table(path), np.array(rows))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty file .*7-zip"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("x y z label\n", "no row of numbers"),
        ("1 2 3 0\n1 2 3\n", "columns changed"),
        ("1,2,3,0\n1 2 3 0\n", "separated by ','"),
        ("1 2 3 0\n1,2,3,0\n", "separated by spaces"),
        ("1,5;2,5;3,5;0\n", "no row of numbers"),
        ("1 2 3 0\n1 2 x 0\n", "line 1"),
    ],
)
def test_broken_tables_are_named_with_a_reason(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=says) as raised:
        read_table(path)
    assert str(raised.value).startswith(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "a.txt")


@pytest.mark.parametrize("header", ["id,pos_x,pos_y,pos_z", "t,Position X,Position Y,Position Z", "i,p.x,p.y,p.z"])
def test_columns_may_have_a_word_before_them(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.csv", ",", header + "\n")
    np.testing.assert_array_equal(read_table(path, ("x", "y", "z")), ROWS[:, [1, 2, 3, 0]])


@pytest.mark.parametrize("header", ["id,nx,ny,nz", "n_x,p_x,n_y,p_y", "Normals:0,Normals:1,Normals:2,Points:0"])
def test_other_names_are_warned_of(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.csv", ",", header + "\n")
    with pytest.warns(UserWarning, match=r"no columns x, y, z among .*; the first three are taken"):
        np.testing.assert_array_equal(read_table(path, ("x", "y", "z")), ROWS)


def test_tables_as_pandas_writes_them(tmp_path: Path) -> None:
    path, frame = tmp_path / "a.csv", pd.DataFrame(ROWS[:, :3] + 0.25)
    frame.to_csv(path)
    np.testing.assert_array_equal(read_table(path, ("x", "y", "z")), frame)
    frame.to_csv(path, index=False)
    with pytest.warns(UserWarning, match="its first row, 0,1,2, is taken for a header"):
        np.testing.assert_array_equal(read_table(path, ("x", "y", "z")), frame)
    frame.set_axis(["x", "y", "z"], axis=1).to_csv(path)
    np.testing.assert_array_equal(read_table(path), frame)


def test_a_unit_in_another_encoding_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("x [µm],y [µm],z [µm]\n1,2,3\n4,5,6\n".encode("latin-1"))
    np.testing.assert_array_equal(read_table(path, ("x", "y", "z")), [[1, 2, 3], [4, 5, 6]])
