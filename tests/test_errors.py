"""What users read of an error."""

from __future__ import annotations

import pytest

from anomaly3d.data.masks import TruthMismatch
from anomaly3d.errors import InputError, check_ends, message


@pytest.mark.parametrize("kind", [InputError, TruthMismatch])
def test_of_a_data_worker_s_error_the_last_line_is_shown(kind: type[InputError]) -> None:
    name = kind.__name__
    wrapped = f"Caught {name} in DataLoader worker process 0.\nOriginal Traceback:\n  x.{name}: a.pcd: empty"
    assert message(kind(wrapped)) == "a.pcd: empty"


def test_an_error_that_quotes_a_log_is_shown_whole() -> None:
    text = "the run 'SeDiR' failed; the end of log.txt:\n  anomaly3d.errors.InputError: a.pcd: empty"
    assert message(InputError(text)) == text


@pytest.mark.parametrize("ends", [(0.3, 0.2), (-1.0, 1.0), (0.0, 0.0), (0.1, float("inf")), (float("nan"), 1.0)])
def test_ends_that_are_none(ends: tuple[float, float]) -> None:
    check_ends(0, width=(0.0, 0.5))
    with pytest.raises(InputError, match="width="):
        check_ends(0, width=ends)
