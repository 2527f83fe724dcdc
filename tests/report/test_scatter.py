from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from anomaly3d.report.scatter import Panel, scatter_panels


def panels(colours: int, count: int = 2) -> list[Panel]:
    rng = np.random.default_rng(0)
    colour = np.arange(4 * colours) % colours
    return [Panel(f"model {i}", rng.random((len(colour), 2)), colour, (colour > 1).astype(int)) for i in range(count)]


@pytest.mark.parametrize("colours", [3, 40])
def test_every_point_stands_where_it_should_in_its_category_s_colour(tmp_path: Path, colours: int) -> None:
    names = [f"category {i}" for i in range(colours)]
    drawn = panels(colours)
    figure = scatter_panels(drawn, names, ["train", "test"], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    legend = {
        text.get_text(): handle
        for text, handle in zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)
    }
    assert list(legend) == [*names, "train", "test"]
    shown = {name: to_hex(legend[name].get_color()) for name in names}  # pyright: ignore
    assert len(set(shown.values())) == colours
    for panel, axes in zip(drawn, figure.axes, strict=True):
        assert axes.get_title() == panel.title
        for marker, points in enumerate(axes.collections):
            assert isinstance(points, PathCollection)
            mine = panel.marker == marker
            np.testing.assert_array_equal(np.asarray(points.get_offsets()), panel.xy[mine])
            expected = [shown[names[colour]] for colour in panel.colour[mine]]
            assert [to_hex(colour) for colour in np.asarray(points.get_facecolor())] == expected


def test_panels_with_named_axes_share_them(tmp_path: Path) -> None:
    figure = scatter_panels(panels(2), ["a", "b"], ["right"], tmp_path / "p.png", ("score", "error"), logit=True)
    assert len({axes.get_ylim() for axes in figure.axes}) == len({axes.get_xlim() for axes in figure.axes}) == 1
    assert [axes.get_xlabel() for axes in figure.axes] == ["score"] * 2
    assert figure.axes[0].get_ylabel() == "error"
    assert {axes.get_xscale() for axes in figure.axes} == {"logit"}


@pytest.mark.parametrize(("low", "high", "ends"), [(0.1, 0.8, ["0.1", "0.8"]), (0.9, 1 - 3e-5, ["0.9", "1 − 3e-05"])])
def test_probabilities_have_three_ticks_however_near_to_one(
    tmp_path: Path, low: float, high: float, ends: list[str]
) -> None:
    panel = Panel("model", np.array([[low, 1.0], [high, 2.0]]), np.array([0, 0]), np.array([0, 0]))
    figure = scatter_panels([panel], ["a"], ["right"], tmp_path / "p.png", ("score", "error"), logit=True)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == 3
    assert [labels[0], labels[-1]] == ends
    assert not figure.axes[0].get_xticks(minor=True).size
