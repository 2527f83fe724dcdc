from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from anomaly3d.errors import InputError
from anomaly3d.ops import backend
from anomaly3d.ops.knn import knn


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    backend.log_choice.cache_clear()
    cloud = torch.rand(1, 10, 3)
    with caplog.at_level(logging.INFO, logger="anomaly3d.ops.backend"):
        knn(cloud, cloud, 2)
        knn(cloud, cloud, 3)
    assert [record.getMessage() for record in caplog.records] == ["knn on cpu: backend kdtree"]


def test_a_named_backend_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    backend.log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="anomaly3d.ops.backend"):
        knn(torch.rand(1, 10, 3), torch.rand(1, 10, 3), 2, backend="torch")
    assert not caplog.records


def test_an_absent_package_names_its_install_command() -> None:
    assert backend.find_package("no_such_package") is None
    with pytest.raises(
        InputError, match=r"knn needs no_such_package, which is not installed\. Run: pip install no_such"
    ):
        backend.require_package("no_such_package", "knn")


def test_a_broken_package_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_extension.py").write_text("raise OSError('libcudart.so.9 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    assert backend.find_package("broken_extension") is None
    with pytest.raises(InputError, match=r"does not import \(libcudart.so.9 not found\). Run: pip install broken"):
        backend.require_package("broken_extension", "fps")


def test_looking_for_a_package_does_not_import_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good_extension.py").write_text("value = 3")
    monkeypatch.syspath_prepend(tmp_path)
    assert "good_extension" not in sys.modules
    module = backend.find_package("good_extension")
    assert module is not None
    assert module.value == 3
