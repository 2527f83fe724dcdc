"""Accumulated batches: the last, incomplete group of an epoch."""

from __future__ import annotations

import math

import lightning as L


def accumulation_weight(trainer: L.Trainer, batch_idx: int) -> float:
    """Factor of a batch's loss that makes the step of an incomplete group that of the mean of its batches.

    Lightning steps behind an epoch's last batch, but divides each loss by `accumulate_grad_batches` all the same.
    """
    group, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if math.isinf(batches) or batch_idx < batches - batches % group:
        return 1.0
    return group / (batches % group)
