import itertools
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch

from anomaly3d.report.colours import ANOMALOUS_RED
from anomaly3d.report.pictures import CloudRow, HeatMap, heatmap_grid

COLUMNS = ["Mamba3dAD (unified)", "SeDiR (per category)"]


def make_row(name: str, count: int = 800, label: int = 1, seed: int = 0, as_tensor: bool = False) -> CloudRow:
    rng = np.random.default_rng(seed)
    xyz = rng.standard_normal((count, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    mask = (xyz[:, 0] > 0.8) & bool(label)
    heat = {
        COLUMNS[0]: HeatMap(rng.random(count) + mask, 1.5),
        COLUMNS[1]: HeatMap(1e3 * rng.standard_normal(count) + 5e3 * mask, 5123.4),
    }
    if as_tensor:
        heat = {key: HeatMap(torch.from_numpy(value.point_scores), value.object_score) for key, value in heat.items()}
        return CloudRow(name, torch.from_numpy(xyz).float(), heat, torch.from_numpy(mask), label)
    return CloudRow(name, xyz, heat, mask, label)


def panels(figure: Any) -> list[list[Any]]:
    """Axes with a cloud, in rows of one per column and the truth."""
    clouds = [axes for axes in figure.axes if axes.get_title()]
    return [clouds[i : i + len(COLUMNS) + 1] for i in range(0, len(clouds), len(COLUMNS) + 1)]


def test_file_and_number_of_panels(tmp_path):
    rows = [make_row("cup0_bulge1"), make_row("cup0_positive0", label=0, seed=1, as_tensor=True)]
    path = tmp_path / "new" / "heat.png"
    figure = heatmap_grid(rows, COLUMNS, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
    assert list(path.parent.iterdir()) == [path]
    grid = panels(figure)
    assert [len(line) for line in grid] == [3, 3]
    assert len(figure.axes) == 2 * 3 + 2  # and a colour bar for each column
    titles = [axes.get_title() for line in grid for axes in line]
    assert titles == [
        *["cup0_bulge1 (anomalous)", "object score 1.5", "object score 5.12e+03"],
        *["cup0_positive0 (normal)", "object score 1.5", "object score 5.12e+03"],
    ]
    assert [text.get_text() for text in figure.texts] == ["ground truth", *COLUMNS]


def test_one_viewpoint_per_row():
    for line in panels(heatmap_grid([make_row("a"), make_row("b", seed=1)], COLUMNS)):
        places = [np.sort(axes.collections[0].get_offsets(), axis=0) for axes in line]
        for other in line[1:]:
            assert (other.get_xlim(), other.get_ylim()) == (line[0].get_xlim(), line[0].get_ylim())
        np.testing.assert_allclose(places[1], places[0])
        np.testing.assert_allclose(places[2], places[0])


def test_one_colour_scale_per_column():
    rows = [make_row("a"), make_row("b", seed=1)]
    figure = heatmap_grid(rows, COLUMNS)
    bars = [axes for axes in figure.axes if not axes.get_title()]
    for axes, column in zip(bars, COLUMNS, strict=True):
        scores = np.concatenate([row.heat[column].point_scores for row in rows])
        np.testing.assert_allclose(axes.get_xlim(), np.percentile(scores, (2, 99.5)))
        assert axes.get_xlabel() == "point score, percentiles 2 to 99.5"


def test_truth_is_red_where_the_mask_is_and_hue_survives_the_shading():
    row = make_row("a")
    mask = np.asarray(row.mask)
    truth = panels(heatmap_grid([row], COLUMNS))[0][0]
    hue, saturation, _ = matplotlib.colors.rgb_to_hsv(truth.collections[0].get_facecolors()[:, :3]).T
    red = saturation > 0.5
    assert red.sum() == mask.sum()
    np.testing.assert_allclose(hue[red], matplotlib.colors.rgb_to_hsv(ANOMALOUS_RED)[0])


def test_large_clouds_are_thinned_out_the_same_way_each_time():
    row = make_row("a", count=16_000)
    figures = [heatmap_grid([row], COLUMNS) for _ in range(2)]
    offsets = [panels(figure)[0][1].collections[0].get_offsets() for figure in figures]
    assert len(offsets[0]) == 15_000
    np.testing.assert_array_equal(offsets[0], offsets[1])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_points_and_constant_scores(count, tmp_path):
    heat = dict.fromkeys(COLUMNS, HeatMap(np.full(count, 7.0), 7.0))
    row = CloudRow("tiny", np.random.default_rng(0).random((count, 3)), heat)
    figure = heatmap_grid([row], COLUMNS, tmp_path / "tiny.png")
    assert panels(figure)[0][0].get_title() == "tiny"  # no label, no verdict
    assert np.isfinite(panels(figure)[0][0].collections[0].get_facecolors()).all()


def test_long_names_do_not_overlap():
    columns = ["PatchCore with FPFH and raw coordinates (per category)", "A second method of a name as long (unified)"]
    rows = []
    for name in ("a_category_of_a_long_name_concavity_0123456789", "b" * 60):
        row = make_row(name)
        rows.append(CloudRow(name, row.xyz, dict(zip(columns, row.heat.values(), strict=True)), row.mask, row.label))
    figure: Any = heatmap_grid(rows, columns)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *(axes.title for axes in figure.axes if axes.get_title())]
    texts += [
        text for axes in figure.axes if not axes.get_title() for text in (*axes.get_xticklabels(), axes.xaxis.label)
    ]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    for box in boxes:  # whose edges lie on whole pixels: one may be rounded outwards
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_what_does_not_fit_is_refused():
    row = make_row("cup0_bulge1")
    with pytest.raises(ValueError, match="at least one cloud"):
        heatmap_grid([], COLUMNS)
    with pytest.raises(ValueError, match="cup0_bulge1: 799 entries in 'mask' for 800 points"):
        heatmap_grid([CloudRow(row.name, row.xyz, row.heat, np.asarray(row.mask)[1:])], COLUMNS)
    short = {**row.heat, COLUMNS[1]: HeatMap([1.0, 2.0], 1.0)}
    with pytest.raises(ValueError, match="cup0_bulge1: 2 entries in 'SeDiR"):
        heatmap_grid([CloudRow(row.name, row.xyz, short)], COLUMNS)
