"""Runs that start together have folders of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger

from anomaly3d.lit.run_folder import claim, with_folder


def test_loggers_that_start_together_share_no_folder(tmp_path: Path) -> None:
    """All look for the next number before any has its folder: Lightning would give each of them the same."""
    ready = threading.Barrier(8)

    class Slow(CSVLogger):
        def _get_next_version(self) -> int:
            number = super()._get_next_version()
            if not ready.broken:
                ready.wait()
                ready.abort()  # the first round only
            return number

    loggers = [Slow(tmp_path, "name") for _ in range(8)]
    threads = [threading.Thread(target=_claim, args=(logger,)) for logger in loggers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(logger.version for logger in loggers) == list(range(8))
    assert all(Path(logger.log_dir).is_dir() for logger in loggers)


def _claim(logger: CSVLogger) -> None:
    try:
        claim(logger)
    except threading.BrokenBarrierError:  # aborted while waiting
        claim(logger)


def test_a_version_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    (tmp_path / "name" / "version_3").mkdir(parents=True)
    (logger,) = with_folder([CSVLogger(tmp_path, "name", version=3)])
    assert logger.version == 3
    (logger,) = with_folder([CSVLogger(tmp_path, "name")])
    assert logger.version == 4


class Elsewhere(Logger):
    """A logger whose folder all runs share."""

    name = version = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]


def test_another_logger_has_a_folder_of_the_run_s_own_before_it(tmp_path: Path) -> None:
    for number in range(2):
        first, second = with_folder([Elsewhere(tmp_path)])
        assert isinstance(first, CSVLogger)
        assert isinstance(second, Elsewhere)
        assert Path(first.log_dir) == tmp_path / f"csv/version_{number}"
        assert Path(first.log_dir).is_dir()
    dummy: list[Logger] = [DummyLogger()]  # what fast_dev_run takes
    assert with_folder(dummy) == dummy


@pytest.mark.slow
def test_runs_that_start_together_keep_their_own_configurations(parts: Path, tmp_path: Path) -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "anomaly3d", "fit", f"--config={conf}", f"--data.root={parts}"),
                *("--trainer.max_epochs=1", "--trainer.limit_val_batches=0", f"--model.lr=0.00{number}"),
            ],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
        for number in (1, 2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    configs = [file.read_text() for file in tmp_path.glob("runs/sedir/version_*/config.yaml")]
    assert len(configs) == 2
    assert {"lr: 0.001" in text for text in configs} == {True, False}
    assert len(list(tmp_path.glob("runs/sedir/version_*/checkpoints/last.ckpt"))) == 2


@pytest.mark.slow
def test_without_a_logger_nothing_is_overwritten(parts: Path, tmp_path: Path) -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    (tmp_path / "config.yaml").write_text("mine\n")
    short = ("--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--trainer.logger=false")
    run(tmp_path, "fit", conf, parts, *short)
    assert (tmp_path / "config.yaml").read_text() == "mine\n"
