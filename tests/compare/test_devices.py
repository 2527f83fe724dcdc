from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anomaly3d.compare import execute
from anomaly3d.compare.devices import gpus, shares


def machine(monkeypatch: pytest.MonkeyPatch, cards: int, visible: str | None = None, cores: int = 8) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("cards", "visible", "jobs", "expected"),
    [
        (4, None, 4, ["0", "1", "2", "3"]),  # one process per GPU
        (4, None, 2, ["0,2", "1,3"]),
        (4, None, 1, ["0,1,2,3"]),
        (2, None, 3, ["0", "1", "0"]),
        (2, "5, GPU-abc", 2, ["5", "GPU-abc"]),  # of those that this process may use
        (0, "0", 2, [None, None]),
        (0, None, 2, [None, None]),
    ],
)
def test_gpus_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, cards: int, visible: str | None, jobs: int, expected: list[str | None]
) -> None:
    machine(monkeypatch, cards, visible)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in shares(jobs)] == expected


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0)
    assert [share["OMP_NUM_THREADS"] for share in shares(3)] == ["2"] * 3
    assert shares(20)[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a user's limit for each process
    assert shares(3)[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert shares(3)[0]["OMP_NUM_THREADS"] == "2"
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert shares(2)[0]["OMP_NUM_THREADS"] == "2"
    assert gpus() == []


def test_runs_take_the_shares_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never two runs on one GPU at a time, and none idle while runs wait."""
    machine(monkeypatch, 2)
    busy: list[str] = []
    seen: list[str] = []

    class Process:
        pid = 0

        def __init__(self, card: str, looks: int) -> None:
            self.card, self.looks, self.returncode = card, looks, int(looks == 2)

        def poll(self) -> int | None:
            self.looks -= 1
            if self.looks > 0:
                return None
            busy.remove(self.card)
            return 0

    def start(run: int, share: dict[str, str], lock: int, poses: Path) -> Process:
        card = share["CUDA_VISIBLE_DEVICES"]
        assert card not in busy
        busy.append(card)
        seen.append(card)
        return Process(card, run)

    class Run(int):
        name = "run"

    monkeypatch.setattr(execute, "start", start)
    monkeypatch.setattr(execute, "show_progress", lambda *_: None)
    monkeypatch.setattr(execute.time, "sleep", lambda _: None)
    monkeypatch.setattr(execute, "failure", lambda run, code: f"{run}: {code}")
    failed = execute.execute_all([Run(looks) for looks in (5, 2, 1, 1, 3)], 2, -1, Path())  # pyright: ignore[reportArgumentType]
    assert failed == [(2, "2: 1")]  # the others went on
    assert seen == ["0", "1", "1", "1", "1"]
    assert not busy
