from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cloud_sets import sphere, write_truth
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly3d.data.masks import SURPLUS, Truth, TruthMismatch, match_truth, read_truth
from anomaly3d.errors import InputError


def match(path: Path, points: np.ndarray, finite: np.ndarray | None = None) -> np.ndarray:
    points = points.astype(np.float64)
    return match_truth(read_truth(path), path, points, np.ones(len(points), bool) if finite is None else finite)


@pytest.mark.parametrize("delimiter", [",", " ", "\t", ";"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_labels_reach_their_points(tmp_path: Path, rng: np.random.Generator, delimiter: str, shuffled: bool) -> None:
    xyz, path = sphere(rng), tmp_path / "a.txt"
    mask = rng.random(600) < 0.1
    write_truth(path, xyz, mask, delimiter, rng.permutation(600) if shuffled else None)
    np.testing.assert_array_equal(match(path, xyz), mask)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e6), st.floats(-1e6, 1e6))
@settings(max_examples=60, deadline=None)
def test_any_order_scale_and_place(count: int, seed: int, scale: float, offset: float) -> None:
    """Against brute force: each point's label is that of the nearest row."""
    rng = np.random.default_rng(seed)
    points = rng.random((count, 3)) * scale + offset
    rows = points[rng.permutation(count)] + rng.uniform(-1, 1, (count, 3)) * 1e-6 * np.ptp(points, axis=0).max()
    labels = rng.random(count) < 0.5
    nearest = np.linalg.norm(points[:, None] - rows[None], axis=2).argmin(axis=1)
    mask = match_truth(Truth(labels, rows), Path("t"), points, np.ones(count, bool))
    np.testing.assert_array_equal(mask, labels[nearest])


def test_an_extra_row_is_allowed_and_a_few_at_most(tmp_path: Path, rng: np.random.Generator) -> None:
    xyz, path = sphere(rng), tmp_path / "a.txt"
    mask = xyz[:, 2] > 9
    far = np.array([[1e3, 0, 0]])
    for extra in (1, SURPLUS):
        rows = np.concatenate([xyz, np.repeat(far, extra, axis=0)])
        write_truth(path, rows, np.append(mask, np.ones(extra, bool)), order=rng.permutation(len(rows)))
        np.testing.assert_array_equal(match(path, xyz), mask)
    twice = np.append(np.arange(600), np.arange(SURPLUS + 1))
    write_truth(path, xyz[twice], mask[twice])
    with pytest.raises(TruthMismatch, match=f"606 rows for a cloud of 600 points: {SURPLUS + 1} too many"):
        match(path, xyz)


def test_points_at_one_place(tmp_path: Path, rng: np.random.Generator) -> None:
    """In the file's order every row keeps its label; in another order an anomalous row wins; rows may be unique."""
    xyz, path = sphere(rng), tmp_path / "a.txt"
    xyz[1] = xyz[0]
    mask = np.zeros(600, bool)
    mask[1] = True
    write_truth(path, xyz, mask)
    assert match(path, xyz)[:2].tolist() == [False, True]
    write_truth(path, xyz, mask, order=np.arange(600)[::-1])
    assert match(path, xyz)[:2].tolist() == [True, True]
    write_truth(path, xyz[1:], mask[1:])
    assert match(path, xyz).nonzero()[0].tolist() == [0, 1]


def test_mask_follows_the_finite_points(tmp_path: Path, rng: np.random.Generator) -> None:
    xyz, path = sphere(rng), tmp_path / "a.txt"
    mask = rng.random(600) < 0.5
    broken = xyz.copy()
    broken[[4, 300]] = np.nan
    finite = np.asarray(np.isfinite(broken).all(axis=1))
    expected = np.delete(mask, [4, 300])
    # Rows for the finite points only, the same in another order, and rows with the same non-finite places.
    write_truth(path, xyz[finite], expected)
    np.testing.assert_array_equal(match(path, broken, finite), expected)
    write_truth(path, xyz, mask, order=rng.permutation(600))
    np.testing.assert_array_equal(match(path, broken, finite), expected)
    write_truth(path, broken, mask)
    np.testing.assert_array_equal(match(path, broken, finite), expected)
    np.save(tmp_path / "a.npy", mask)
    np.testing.assert_array_equal(match(tmp_path / "a.npy", broken, finite), expected)


def test_rows_in_order_may_be_rounded_and_others_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    xyz, path = sphere(rng), tmp_path / "a.txt"
    mask = rng.random(600) < 0.1
    rounded = np.round(xyz, 1)  # rows are found by their place within 0.0035
    write_truth(path, rounded, mask, ",")
    np.testing.assert_array_equal(match(path, xyz), mask)
    write_truth(path, rounded, mask, ",", rng.permutation(600))
    with pytest.raises(TruthMismatch, match=r"rounded by up to 0\.05, too coarsely .* Write more decimals"):
        match(path, xyz)
    write_truth(path, np.round(xyz), mask, ",")  # beyond recognition
    with pytest.raises(TruthMismatch):
        match(path, xyz)
    whole = np.round(100 * xyz)  # no rounding is to blame
    write_truth(path, whole + 1000, mask, ",")
    with pytest.raises(TruthMismatch, match="belongs to another cloud"):
        match(path, whole)


def test_one_label_per_row(tmp_path: Path, rng: np.random.Generator) -> None:
    xyz = sphere(rng, 20)
    mask = rng.random(20) < 0.5
    np.savetxt(tmp_path / "a.txt", mask, fmt="%d")
    np.testing.assert_array_equal(match(tmp_path / "a.txt", xyz), mask)
    with pytest.raises(TruthMismatch, match="20 labels for a cloud of 19 points"):
        match(tmp_path / "a.txt", xyz[:19])


@pytest.mark.parametrize(
    "change", [lambda x: x * 1.01, lambda x: x + 0.5, lambda x: x[:, [1, 0, 2]], lambda x: x[:300]]
)
def test_truth_of_another_cloud_is_refused(tmp_path: Path, rng: np.random.Generator, change) -> None:
    xyz, path = sphere(rng), tmp_path / "a.txt"
    write_truth(path, change(xyz), np.zeros(len(change(xyz)), bool))
    with pytest.raises(TruthMismatch, match=r"a\.txt: \d+ of the cloud's 600 points have no row within"):
        match(path, xyz)


def test_all_points_labelled_or_none(tmp_path: Path, rng: np.random.Generator) -> None:
    xyz, path = sphere(rng), tmp_path / "a.txt"
    for value in (True, False):
        write_truth(path, xyz, np.full(600, value), order=rng.permutation(600))
        assert (match(path, xyz) == value).all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty file .*7-zip"),
        ("1 2 3\n4 5 6\n", "3 columns"),
        ("1 2 3 0 0\n", "5 columns"),
        ("1 2 3 0.4\n", "no label"),
        ("1 2 3 -1\n", "no label"),
        ("1 2 3 nan\n", "no label"),
        ("1 2 3 0\n1 2 3\n", "columns changed"),
    ],
)
def test_broken_truth_is_named_with_a_reason(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=says) as raised:
        read_truth(path)
    assert str(path) in str(raised.value)
