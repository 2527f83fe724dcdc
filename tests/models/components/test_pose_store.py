"""Registrations on disk: found again, never stale, and counted with the time that they took."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly3d.models.components import pose_store
from anomaly3d.models.components.pose_store import POSES, spared_seconds, stored
from anomaly3d.models.components.registration import RegistrationSettings, Template


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(POSES, str(tmp_path / "poses"))
    return tmp_path / "poses"


def test_numbers_are_computed_once_and_come_back_bit_for_bit(folder):
    numbers = np.random.default_rng(0).normal(size=17) * 1e-7
    calls = []

    def compute():
        calls.append(1)
        return numbers

    for _ in range(3):
        np.testing.assert_array_equal(stored(("a", b"b"), compute), numbers)
    assert len(calls) == 1
    stored(("ab", b""), compute)  # the same bytes, parted elsewhere
    stored(("a", b"c"), compute)
    assert len(calls) == 3 == len(list(folder.rglob("*.npy")))


def test_nothing_is_kept_unless_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(POSES, raising=False)
    calls = []
    for _ in range(2):
        stored(("a",), lambda: calls.append(1) or np.zeros(1))
    assert len(calls) == 2
    assert not list(tmp_path.iterdir())


def test_other_code_computes_anew(folder, monkeypatch):
    stored(("a",), lambda: np.zeros(1))
    monkeypatch.setattr(pose_store, "_maker", lambda: "other")
    assert stored(("a",), lambda: np.ones(1)) == 1
    assert len(list(folder.rglob("*.npy"))) == 2


def test_the_hash_covers_all_of_ours_that_a_registration_calls():
    """Walks the imports from registration.py on, in `ops` and the components that register."""
    source = Path(pose_store.__file__).parents[2]
    registering = {source / "models/components" / f"{name}.py" for name in ("fpfh", "icp", "memory", "ransac")}
    nothing_of_the_numbers = {source / "ops" / f"{name}.py" for name in ("backend", "stages")}  # imports, and clocks
    called, new = set(), {source / "models/components/registration.py"}
    while new:
        called |= new
        tree = [node for file in new for node in ast.walk(ast.parse(file.read_text("utf-8")))]
        imports = [node for node in tree if isinstance(node, ast.ImportFrom) and node.module]
        names = {f"{node.module}{name}" for node in imports for name in ("", *(f".{a.name}" for a in node.names))}
        files = {source.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith("anomaly3d.")}
        new = {file for file in files if file in registering or (file.parent == source / "ops" and file.exists())}
        new -= called
    assert registering < called
    assert source / "ops/tree.py" in called
    assert called - nothing_of_the_numbers == set(pose_store._sources())


def test_a_failure_leaves_no_file(folder):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stored(("a",), fail)
    assert stored(("a",), lambda: np.ones(1)) == 1


def test_a_damaged_file_is_made_anew(folder):
    stored(("a",), lambda: np.zeros(3))
    (file,) = folder.rglob("*.npy")
    whole = file.read_bytes()
    for broken in (b"", whole[:-5], b"no array"):
        file.write_bytes(broken)
        np.testing.assert_array_equal(stored(("a",), lambda: np.ones(3)), np.ones(3))
        np.testing.assert_array_equal(stored(("a",), lambda: np.zeros(3)), np.ones(3))


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_result(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(POSES, str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"file: registrations can't be kept .*ANOMALY3D_POSES"):
        assert stored(("a",), lambda: np.ones(1)) == 1


def test_what_is_found_counts_with_the_time_that_it_took(folder, monkeypatch):
    times = iter([10.0, 13.5])
    monkeypatch.setattr(pose_store.time, "perf_counter", lambda: next(times))
    before = spared_seconds()
    stored(("a",), lambda: np.ones(1))
    assert spared_seconds() == before
    stored(("a",), lambda: np.ones(1))
    stored(("a",), lambda: np.ones(1))
    assert spared_seconds() - before == 7
    assert type(spared_seconds()) is float  # checkpoints take nothing of numpy


def test_cloud_template_and_settings_are_told_apart(open3d, folder):
    generator = torch.Generator().manual_seed(0)
    clouds = [torch.rand(300, 3, generator=generator) * torch.tensor([1, 0.7, 0.3]) for _ in range(2)]
    few = RegistrationSettings(hypotheses=500, rotations=100)

    def files(template, settings, cloud):
        found = Template(template, settings).register(cloud)
        return found, {path.name for path in folder.rglob("*.npy")}

    found, first = files(clouds[0], few, clouds[1])
    again, same = files(clouds[0].clone(), few, clouds[1].clone())
    assert same == first
    assert again.residual == found.residual
    np.testing.assert_array_equal(again.pose, found.pose)
    for other in (
        (clouds[0] + 1e-6, few, clouds[1]),
        (clouds[0], RegistrationSettings(hypotheses=501, rotations=100), clouds[1]),
        (clouds[0], few, clouds[1][:-1]),
    ):
        before = {path.name for path in folder.rglob("*.npy")}
        _, after = files(*other)
        assert len(after) > len(before)
