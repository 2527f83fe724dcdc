"""A causal scan made bidirectional."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def both_ways(
    scan: Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S E"]], x: Float[Tensor, "B S D"]
) -> Float[Tensor, "B S E"]:
    """The mean of a scan from the start and the same scan from the end, so that every slot sees all others. [ours]

    The directions share their weights: no parameters are added, and a reversed input gives the reversed output. The
    sorter's losses do not tell one end of its order from the other, so no direction deserves weights of its own. The
    mean, unlike the sum, leaves the scale at which the gate mixes in the output as it is with one direction.
    """
    forward, backward = scan(torch.cat([x, x.flip(1)])).chunk(2)
    return (forward + backward.flip(1)) / 2
