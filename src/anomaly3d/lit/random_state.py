"""The random generators of a training: one stream per process, and their states in checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class RandomState(Callback):
    """Draws of its own for every process of a training, which go on from a checkpoint as if there had been no stop.

    Lightning gives all processes the same state, so that all would alter their clouds by the same numbers. Behind the
    initialisation of the weights, every rank but the first leaves it for a stream that follows from the state and the
    rank; one process, or the first of several, draws as if there were no others.

    Checkpoints hold the state of every rank: on the CPU a training that goes on with as many processes ends with the
    same bits. A rank that the checkpoint doesn't know (it is of fewer processes, or of an older version, which wrote
    the first one's state alone) starts a stream that follows from the first one's state.
    """

    def __init__(self) -> None:
        self._restored = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a checkpoint is loaded: what an earlier run has restored is none of this one's."""
        self._restored = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Behind weights and checkpoint, before the first epoch: part the ranks, unless the checkpoint did."""
        if not self._restored:
            _part(trainer.global_rank)

    def state_dict(self) -> dict[str, Any]:
        """States of torch's generators of all ranks, of the CPU and of the GPU in use. A collective call in DDP."""
        ours = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            ours["cuda"] = torch.cuda.get_rng_state()
        if not _distributed():
            return {"ranks": [ours]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, ours)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning loads callbacks behind the weights and before the first epoch's order is drawn."""
        states = state_dict.get("ranks", [state_dict])  # older versions: the first rank's alone
        rank = dist.get_rank() if _distributed() else 0
        known = rank < len(states)
        state = states[rank if known else 0]
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
        if not known:
            _part(rank)
        self._restored = True


def _part(rank: int) -> None:
    """Leave a state that all ranks share; the first one stays in it."""
    if rank > 0:
        drawn = int(torch.randint(2**62, ()))
        torch.manual_seed(int(np.random.SeedSequence([drawn, rank]).generate_state(1, np.uint64)[0]))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
