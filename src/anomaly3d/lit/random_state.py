"""The state of the random generators, in checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback


class RandomState(Callback):
    """A training that goes on from a checkpoint draws the numbers that it would have drawn without the stop.

    On the CPU it ends with the same bits. Under `ddp` every process goes on with the state of the first.
    """

    def state_dict(self) -> dict[str, Any]:
        """States of torch's generators, of the CPU and of the GPU in use."""
        state = {"cpu": torch.get_rng_state()}
        return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning loads callbacks behind the weights and before the first epoch's order is drawn."""
        torch.set_rng_state(state_dict["cpu"].cpu())
        if "cuda" in state_dict and torch.cuda.is_available():
            torch.cuda.set_rng_state(state_dict["cuda"].cpu())
