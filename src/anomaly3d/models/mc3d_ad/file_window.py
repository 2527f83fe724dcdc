"""The published smoothing of point scores: an average along the rows of the file."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import InputError


def average_along_rows(scores: Float[Tensor, " N"], window: int) -> Float[Tensor, " N"]:
    """Mean of `window` (odd) scores around each, in the order given; beyond the ends zeros count (public code: 511).

    Rows of a file are no neighbourhood: the result depends on their order, so it is a choice of `paper` alone.
    """
    if window < 1 or window % 2 == 0:
        raise InputError(f"row_window={window}: give an odd number of rows, from 1")
    return F.avg_pool1d(scores[None], window, stride=1, padding=window // 2)[0]
