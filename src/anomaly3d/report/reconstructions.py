"""What a masked autoencoder makes of what it does not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomaly3d.files import replacing
from anomaly3d.models.backbones.mae import MaskedReconstruction


def draw_reconstructions(found: MaskedReconstruction, path: Path, title: str, clouds: int = 4) -> None:
    """A row per cloud: centres of the visible patches (black) beside the masked patches as they are and as drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    hidden = found.target.shape[1]
    centres = found.centres.float().cpu().numpy()
    unit = found.unit.float().cpu().numpy()
    clouds = min(clouds, len(centres))
    figure = Figure(figsize=(6, 3 * clouds), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for row in range(clouds):
        visible, masked = centres[row, :-hidden], centres[row, -hidden:]
        for column, (name, patches) in enumerate((("masked patches", found.target), ("drawn", found.predicted))):
            points = patches[row].detach().float().cpu().numpy() * unit[row] + masked[:, None]
            axes = figure.add_subplot(clouds, 2, 2 * row + column + 1, projection="3d")
            colours = np.repeat(np.arange(hidden) % 20, points.shape[1])
            axes.scatter(*points.reshape(-1, 3).T, c=colours, cmap="tab20", s=1.5, linewidths=0)  # pyright: ignore
            axes.scatter(*visible.T, c="black", s=6, marker="x", linewidths=0.7)  # pyright: ignore
            axes.set_title(name if row == 0 else "", fontsize=9)
            axes.set_aspect("equal")
            axes.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary)
