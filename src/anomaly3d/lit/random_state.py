"""The state of the random generators, in checkpoints."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class RandomState(Callback):
    """A training that goes on from a checkpoint draws the numbers that it would have drawn without the stop.

    On the CPU it ends with the same bits. Under `ddp` every process goes on with the state of the first.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """States of torch's generators, of the CPU and of the GPU in use."""
        state = {"cpu": torch.get_rng_state()}
        return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states for the start: until then weights and loaders draw numbers of their own."""
        self._loaded = state_dict

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the first epoch's order is drawn."""
        loaded, self._loaded = self._loaded, {}
        if "cpu" in loaded:
            torch.set_rng_state(loaded["cpu"].cpu())
        if "cuda" in loaded and torch.cuda.is_available():
            torch.cuda.set_rng_state(loaded["cuda"].cpu())
