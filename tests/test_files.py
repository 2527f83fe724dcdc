import pytest

from anomaly3d.files import replacing, write_text


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = write_text(tmp_path / "a" / "b" / "table.md", "µ ± 1\n")
    assert path.read_text(encoding="utf-8") == "µ ± 1\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = write_text(tmp_path / "table.csv", "old")

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text("half a ta")
            assert path.read_text() == "old"
            assert temporary.suffix == ".csv"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
