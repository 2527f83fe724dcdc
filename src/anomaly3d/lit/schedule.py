"""The learning rate of every training: linear warm-up, then half a cosine, stepped every batch."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from anomaly3d.errors import InputError


def warmup_cosine(step: int, warmup: int, total: int, start: float) -> float:
    """Factor of the peak learning rate at a step.

    Linear from `start` to 1 over `warmup` steps, then half a cosine to 0 at `total` (Mamba3dAD, training section).
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def with_schedule(optimizer: Optimizer, trainer: L.Trainer, warmup_epochs: float, start: float) -> Any:
    """The optimizer under `warmup_cosine` over the trainer's steps, as `configure_optimizers` returns it."""
    if math.isinf(trainer.estimated_stepping_batches):
        raise InputError("trainer: the learning rate falls to zero at the end, so give one: max_epochs, or max_steps")
    total = max(1, int(trainer.estimated_stepping_batches))
    if math.isinf(trainer.num_training_batches):  # nobody has asked yet
        trainer.fit_loop.setup_data()
    # Not a share of the total: max_steps may end a training before its epochs do, or without any.
    an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    warmup = min(total, round(warmup_epochs * an_epoch))
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total, start))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
