"""Which part of the machine each of several processes may use."""

from __future__ import annotations

import os

import torch


def gpus() -> list[str]:
    """The GPUs this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in visible.split(",") if name.strip()] if torch.cuda.is_available() else []


def cores() -> int:
    """The cores that this process may use, which a scheduler may have made fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _most_threads() -> int:
    """What the user allows a process."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else cores()


def shares(jobs: int) -> list[dict[str, str]]:
    """The environment of each of `jobs` processes that run beside each other: its share of the cores and of the GPUs.

    More processes than GPUs take turns in sharing them; with fewer, each gets several.
    """
    cards = gpus()
    threads = str(min(max(1, cores() // jobs), _most_threads()))
    # Idle threads sleep: the processes leave each other the cores.
    environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    if not cards:
        return [dict(environment) for _ in range(jobs)]
    mine = [cards[number::jobs] or [cards[number % len(cards)]] for number in range(jobs)]
    return [{**environment, "CUDA_VISIBLE_DEVICES": ",".join(names)} for names in mine]
