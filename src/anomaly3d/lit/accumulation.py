"""Accumulated batches: the last, incomplete group of an epoch."""

from __future__ import annotations

import math

import lightning as L


def accumulation_weight(trainer: L.Trainer, batch_idx: int) -> float:
    """Factor of a batch's loss that makes the step of an incomplete group that of the mean of its batches.

    Lightning takes a step after the last batch of an epoch even where its group is incomplete, but still divides each
    loss by `accumulate_grad_batches`, as if it were full.
    """
    group, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if math.isinf(batches) or batch_idx < batches - batches % group:
        return 1.0
    return group / (batches % group)
