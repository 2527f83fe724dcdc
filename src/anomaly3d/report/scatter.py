"""Scatter plots side by side, one panel per model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from anomaly3d.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL, _ROW = 3.4, 0.22  # inches
_SHAPES = "oX"


@dataclass(frozen=True)
class Panel:
    """Points xy (n, 2), and which colour and which marker each one has, as indices into names of the picture."""

    title: str
    xy: Float[ndarray, "n 2"]
    colour: Int[ndarray, " n"]
    marker: Int[ndarray, " n"]


def _probability(p: float) -> str:
    """A probability, or what it lacks of 1."""
    return f"{p:.2g}" if p < 0.99 else f"1 − {1 - p:.0e}"


def scatter_panels(
    panels: Sequence[Panel],
    colours: Sequence[str],
    markers: Sequence[str],
    path: Path,
    labels: tuple[str, str] | None = None,
    logit: bool = False,
) -> Figure:
    """Draw the panels in a row with one legend under them.

    Args:
        panels: from left to right.
        colours: name of each colour.
        markers: name of each marker, at most two.
        path: where to save the picture (format by suffix).
        labels: names of the axes, which all panels then share; without them a panel has axes of its own that mean
            nothing, and no ticks.
        logit: stretch both ends of an x-axis of probabilities, which lie strictly between 0 and 1.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator
    from scipy.special import expit
    from scipy.special import logit as log_odds

    few = len(colours) <= 10
    palette = [
        colormaps["tab10"](i) if few else colormaps["turbo"]((i + 0.5) / len(colours)) for i in range(len(colours))
    ]
    columns = max(2, int(len(panels) * _PANEL / 1.3))
    legend = ceil((len(colours) + len(markers)) / columns) * _ROW + 0.15
    height = _PANEL + legend
    figure = Figure(figsize=(len(panels) * _PANEL, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    shared = labels is not None
    ticks: list[float] = []
    if logit:  # matplotlib's own run into each other where all probabilities are nearly 1
        x = np.concatenate([panel.xy[:, 0] for panel in panels])
        ticks = sorted(set(expit(np.linspace(log_odds(x.min()), log_odds(x.max()), 3)).tolist()))
    grid = figure.subplots(1, len(panels), sharex=shared, sharey=shared, squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        for index, shape in enumerate(_SHAPES[: len(markers)]):
            chosen = panel.marker == index
            points = [palette[colour] for colour in panel.colour[chosen]]
            axes.scatter(*panel.xy[chosen].T, c=points, marker=shape, s=24, linewidths=0.5, edgecolors="white")
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=7)
        if labels is None:
            axes.set(xticks=[], yticks=[])
        else:
            axes.set_xlabel(labels[0], fontsize=8)
        if logit:
            axes.set_xscale("logit")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(ticks, [_probability(tick) for tick in ticks])
    if labels is not None:
        grid[0].set_ylabel(labels[1], fontsize=8)
    handles = [Line2D([], [], ls="", marker="s", color=c, label=n) for c, n in zip(palette, colours, strict=True)]
    handles += [Line2D([], [], ls="", marker=s, color="black", label=n) for s, n in zip(_SHAPES, markers, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary)
    return figure
