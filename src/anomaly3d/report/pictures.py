"""Heat maps of clouds, side by side for several methods."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from anomaly3d.files import replacing
from anomaly3d.ops.normals import estimate_normals
from anomaly3d.ops.tree import search
from anomaly3d.report.camera import choose_camera, in_front
from anomaly3d.report.colours import ANOMALOUS_RED, HEAT, NORMAL_GREY, PERCENTILES, heat_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL, _TITLE, _BAR, _GAP = 2.3, 0.28, 0.58, 0.08  # inches
_DPI = 200
_MOST_POINTS = 15_000  # of a cloud
_CAMERA_POINTS = 4000  # enough to tell what a direction shows
_AMBIENT = 0.45


@dataclass(frozen=True)
class HeatMap:
    """What one method says of one cloud: a score per point (N,), and of the object."""

    point_scores: ArrayLike
    object_score: float


@dataclass(frozen=True)
class CloudRow:
    """One line of the picture: a cloud (N, 3), its truth if known, and one heat map per column.

    `up` is the direction, in the cloud's frame, that stands upright in the picture.
    """

    name: str
    xyz: ArrayLike
    heat: Mapping[str, HeatMap]
    mask: ArrayLike | None = None
    label: int | None = None
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)


def heatmap_grid(rows: Sequence[CloudRow], columns: Sequence[str], path: Path | str | None = None) -> Figure:
    """Draw each cloud's ground truth and, beside it, what each column's method says.

    All panels of a row share one viewpoint, chosen so that the defect is in sight. All panels of a column share one
    colour scale: the two percentiles of the method's point scores over the clouds shown, named under its bar.
    The surface is shaded by estimated normals. Of a cloud of more than 15,000 points a random subset with a fixed seed
    is drawn.

    Args:
        rows: clouds, from top to bottom.
        columns: keys of `CloudRow.heat`, from left to right, used as headings.
        path: where to save the picture (format by suffix); not saved if None.

    Raises:
        ValueError: no row or column, or scores and mask that do not fit the cloud.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    _check(rows, columns)
    views = [_View(row) for row in rows]
    headings = [textwrap.fill(heading, 24) for heading in ["ground truth", *columns]]
    header = 0.16 + 0.18 * max(heading.count("\n") + 1 for heading in headings)
    width = (1 + len(columns)) * (_PANEL + _GAP) + _GAP
    height = header + sum(_TITLE + view.height for view in views) + _BAR
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def add_axes(column: int, top: float, wide: float, high: float) -> Axes:
        """Axes of a size in inches, centred in a column."""
        left = _GAP + column * (_PANEL + _GAP) + (_PANEL - wide) / 2
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    scales = {}
    for name in columns:
        low, high = heat_range(np.concatenate([_scores(row, name) for row in rows]))
        scales[name] = ScalarMappable(Normalize(low, max(high, np.nextafter(low, np.inf))), HEAT)
    for index, heading in enumerate(headings):
        x = (_GAP + index * (_PANEL + _GAP) + _PANEL / 2) / width
        figure.text(x, 1 - header / 2 / height, heading, ha="center", va="center", fontsize=10, weight="bold")
    top = header
    for row, view in zip(rows, views, strict=True):
        panels = [(_truth_colours(row), f"{row.name}{_verdict(row.label)}")]
        panels += [
            (scales[name].to_rgba(_scores(row, name))[:, :3], f"object score {row.heat[name].object_score:.3g}")
            for name in columns
        ]
        for index, (colours, title) in enumerate(panels):
            axes = add_axes(index, top + _TITLE, _PANEL, view.height)
            axes.set_title(title, fontsize=min(8.5, 72 * _PANEL / (0.58 * len(title))), pad=3)
            view.draw(axes, colours, raise_defect=index == 0)
        top += _TITLE + view.height
    for index, name in enumerate(columns, start=1):
        axes = add_axes(index, top + 0.12, 0.8 * _PANEL, 0.09)
        bar = figure.colorbar(scales[name], cax=axes, orientation="horizontal", extend="both")
        ends = scales[name].get_clim()
        bar.set_ticks(list(ends), labels=[f"{value:.3g}" for value in ends])
        bar.ax.tick_params(labelsize=7, length=2, pad=2)
        bar.set_label("point score, percentiles {:g} to {:g}".format(*PERCENTILES), fontsize=7, labelpad=1)
    if path is not None:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=_DPI)
    return figure


class _View:
    """A cloud thinned out and seen from its camera, far points first. `height` of a panel that holds it, in inches."""

    def __init__(self, row: CloudRow) -> None:
        xyz = np.asarray(row.xyz, dtype=np.float64)
        # A random order: any prefix is a sample of the whole.
        self.chosen = np.random.default_rng(0).permutation(len(xyz))[:_MOST_POINTS]
        xyz = xyz[self.chosen]
        mask = np.zeros(len(xyz), dtype=bool) if row.mask is None else np.asarray(row.mask, dtype=bool)[self.chosen]
        few = slice(_CAMERA_POINTS)
        camera = choose_camera(xyz[few], _normals(xyz[few]), _spacing(xyz[few]), np.array(row.up), mask[few])
        spacing = _spacing(xyz)
        self.flat, self.depth = camera.project(xyz)
        self.raised = 2 * spacing * mask
        # Normals of the front only, or a thin wall's two sides would be averaged; the rest is shaded as the nearest
        # front point is, since at grazing angles some of it does show.
        front = in_front(camera, xyz, 2 * spacing)
        shade = _shading(_normals(xyz[front]) @ camera.axes.T)
        self.shade = shade[search(KDTree(xyz[front]), xyz)[1]]
        extent = np.ptp(self.flat, axis=0) + 4 * spacing
        self.height = _PANEL * float(np.clip(extent[1] / extent[0], 0.5, 1.0))
        self.unit = float(max(extent[0] / _PANEL, extent[1] / self.height))  # of the cloud, per inch
        # Discs that overlap, so that the back does not shine through.
        self.diameter = 72 * 2.6 * spacing / self.unit

    def draw(self, axes: Axes, colours: NDArray[np.floating], raise_defect: bool) -> None:
        """Draw the points in `colours` (N, 3) of the whole cloud; a raised defect is not hidden by its neighbours."""
        centre = (self.flat.min(0) + self.flat.max(0)) / 2
        half = np.array([_PANEL, self.height]) / 2 * self.unit
        axes.set_xlim(centre[0] - half[0], centre[0] + half[0])
        axes.set_ylim(centre[1] - half[1], centre[1] + half[1])
        lit = colours[self.chosen] * self.shade[:, None]
        order = np.argsort(self.depth + self.raised if raise_defect else self.depth)
        axes.scatter(*self.flat[order].T, c=lit[order], s=max(self.diameter, 1.0) ** 2, linewidths=0)
        axes.set_axis_off()


def _normals(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    return estimate_normals(torch.from_numpy(xyz), min(20, len(xyz))).double().numpy()


def _spacing(xyz: NDArray[np.float64]) -> float:
    """Median distance to the third neighbour."""
    distance = search(KDTree(xyz), xyz, min(4, len(xyz)))[0]
    return float(np.median(distance.reshape(len(xyz), -1)[:, -1])) or 1.0


def _shading(normals: NDArray[np.floating]) -> NDArray[np.floating]:
    """Brightness (N,) of a matt surface lit from above left, for normals in the camera's frame.

    What is seen faces the viewer, which settles the normals' signs.
    """
    light = np.array([-0.45, 0.55, 0.70])
    facing = normals * np.where(normals[:, 2:] < 0, -1, 1)
    return _AMBIENT + (1 - _AMBIENT) * np.clip(facing @ light, 0, 1)


def _truth_colours(row: CloudRow) -> NDArray[np.floating]:
    mask = np.zeros(len(np.asarray(row.xyz)), dtype=bool) if row.mask is None else np.asarray(row.mask, dtype=bool)
    return np.where(mask[:, None], ANOMALOUS_RED, NORMAL_GREY)


def _verdict(label: int | None) -> str:
    return "" if label is None else " (anomalous)" if label else " (normal)"


def _scores(row: CloudRow, column: str) -> NDArray[np.float64]:
    return np.asarray(row.heat[column].point_scores, dtype=np.float64)


def _check(rows: Sequence[CloudRow], columns: Sequence[str]) -> None:
    if not rows or not columns:
        raise ValueError("a picture needs at least one cloud and one column")
    for row in rows:
        count = len(np.asarray(row.xyz))
        lengths = {name: len(_scores(row, name)) for name in columns}
        if row.mask is not None:
            lengths["mask"] = len(np.asarray(row.mask))
        for name, length in lengths.items():
            if length != count:
                raise ValueError(f"{row.name}: {length} entries in {name!r} for {count} points")
