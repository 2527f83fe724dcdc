"""The colours of every picture of a cloud: of its scores, and of its truth."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

NORMAL_GREY = (0.80, 0.80, 0.80)
ANOMALOUS_RED = (0.835, 0.369, 0.0)  # Okabe and Ito's vermilion: told from grey by every eye

HEAT = "YlOrRd"
"""Matplotlib's name of the scores' colours: ordered by lightness, for colour-blind readers and in print, and pale where
scores are low, so that the shading of the shape stays visible."""
PERCENTILES = (2.0, 99.5)
"""Of the scores, at the two ends of the colours: few extreme points would leave the others one colour."""


def heat_range(scores: Float[np.ndarray, " N"]) -> Float[np.ndarray, "2"]:
    """The scores at the two ends of the colours."""
    return np.percentile(scores, PERCENTILES)


def heat_colours(scores: Float[np.ndarray, " N"], as_bytes: bool = False) -> Shaped[np.ndarray, "N 4"]:
    """Red, green, blue and alpha (N, 4) of a cloud's scores, from 0 to 1, or as bytes up to 255.

    The ends of the colours are the cloud's own; scores that are all the same are pale.
    """
    from matplotlib import colormaps

    low, high = heat_range(scores)
    share = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    return colormaps[HEAT](share.clip(0, 1), bytes=as_bytes)
