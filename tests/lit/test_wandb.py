"""W&B without a server: what a run leaves for `wandb sync`, and what it refuses."""

from __future__ import annotations

import json
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from command_line import checkpoint, run
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from matplotlib import colormaps

from anomaly3d.errors import InputError
from anomaly3d.lit.heatmaps import HeatMaps, scene
from anomaly3d.lit.run_folder import check_loggers, with_folder
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

CONF = Path(__file__).parents[1] / "conf" / "sedir.yaml"
LOGGER = ("--trainer.logger+=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.project=tests")


@pytest.mark.slow
def test_training_and_test_leave_metrics_configuration_and_heat_maps(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, "fit", CONF, parts, *LOGGER, "--trainer.log_every_n_steps=1", "--model.lr=0.00125")
    (fitted,) = tmp_path.glob("wandb/offline-run-*")
    (log,) = fitted.glob("*.wandb")
    content = log.read_bytes()
    for name in ("train/loss", "val/o_auroc", "val/p_aupr"):
        assert name.encode() in content
    # The whole configuration, with what no recipe names.
    for text in ('"lr":0.00125', '"betas":', "class_path", "val_rotation"):
        assert text.encode() in content
    assert sorted(f.name.split("_")[0] for f in fitted.glob("files/media/object3D/val/heatmap/*")) == ["flange", "gear"]

    run(tmp_path, "test", CONF, parts, *LOGGER, "--ckpt_path", str(checkpoint(tmp_path)))
    (tested,) = set(tmp_path.glob("wandb/offline-run-*")) - {fitted}
    assert b"test/o_auroc" in next(tested.glob("*.wandb")).read_bytes()
    for category in ("flange", "gear"):
        (file,) = tested.glob(f"files/media/object3D/test/heatmap/{category}_*")  # one, whatever the number of clouds
        points = np.array(json.loads(file.read_text())["points"])
        truth = points[len(points) // 2 :, 3:]
        assert len(np.unique(truth, axis=0)) == 2  # the cloud has a defect
    # One folder per run; W&B's is common to both.
    assert sorted(f.parent.name for f in tmp_path.glob("runs/sedir/*/config.yaml")) == ["version_0", "version_1"]
    assert not (tmp_path / "config.yaml").exists()


def test_a_scene_has_the_heat_map_and_the_truth_beside_it() -> None:
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(1000, 3)) + 5
    scores = rng.random(1000)
    mask = scores > 0.9
    points = scene(xyz, scores, mask)
    heat, truth = points[:1000], points[1000:]
    assert points.shape == (2000, 6)
    assert points[:, 3:].min() >= 0
    assert points[:, 3:].max() <= 255
    assert heat[:, 0].max() < truth[:, 0].min()
    np.testing.assert_allclose(heat[:, 1:3], truth[:, 1:3])
    np.testing.assert_allclose(np.ptp(heat[:, :3], axis=0), np.ptp(xyz, axis=0))  # a shift, in the cloud's unit
    # Back to the rows of the cloud: the colours are those of their own points.
    row = np.argsort(np.argsort(xyz[:, 0])).argsort()[np.argsort(np.argsort(heat[:, 0]))]
    np.testing.assert_array_equal(np.ptp(truth[mask[row], 3:], axis=0), 0)
    assert not (truth[mask[row], 3:][:1] == truth[~mask[row], 3:]).all(1).any()
    hottest = scores[row] >= np.percentile(scores, 99.5)
    np.testing.assert_allclose(heat[hottest, 3:], np.tile(255 * np.array(colormaps["YlOrRd"](1.0)[:3]), (5, 1)))


def test_large_clouds_fit_into_w_and_b_s_limit_and_even_scores_have_a_colour() -> None:
    points = scene(np.random.default_rng(0).normal(size=(60_000, 3)), np.ones(60_000), np.zeros(60_000, dtype=bool))
    assert len(points) == 50_000
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(
        points, scene(np.random.default_rng(0).normal(size=(60_000, 3)), np.ones(60_000), np.zeros(60_000, dtype=bool))
    )


def batch_and_scores(defects: list[bool]) -> tuple[PointCloudBatch, AnomalyPrediction]:
    clouds = [torch.randn(30, 3) for _ in defects]
    masks = [torch.arange(30) < 3 * defect for defect in defects]
    names = [f"c{number}" for number in range(len(defects))]
    batch = PointCloudBatch.pack(clouds, names, [0] * len(defects), [int(d) for d in defects], masks)
    return batch, AnomalyPrediction(torch.rand(30 * len(defects)), torch.rand(len(defects)))


class Recorder(WandbLogger):
    """Takes what would go to W&B."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged |= dict(metrics)


def trainer_with(*loggers: Any) -> Any:
    from anomaly3d.data.anomaly_shapenet import AnomalyShapeNet

    data = AnomalyShapeNet("unused")
    data.category_names = ("gear",)
    return SimpleNamespace(loggers=list(loggers), is_global_zero=True, datamodule=data, global_step=7)


def test_the_first_defective_cloud_is_shown_and_each_evaluation_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SimpleNamespace(Object3D=lambda data, caption: (data, caption))
    monkeypatch.setitem(sys.modules, "wandb", made)
    logger = Recorder()
    trainer, heat, module = trainer_with(logger), HeatMaps(), L.LightningModule()
    heat.on_test_epoch_start(trainer, module)
    for defects in ([False], [False, True], [True]):
        batch, prediction = batch_and_scores(defects)
        heat.on_test_batch_end(trainer, module, prediction, batch, 0)
    heat.on_test_end(trainer, module)
    ((data, caption),) = logger.logged.values()
    assert list(logger.logged) == ["test/heatmap/gear"]
    assert data["points"].shape == (60, 6)
    assert caption.startswith("c1: ")  # the second of the second batch
    logger.logged.clear()
    heat.on_test_epoch_start(trainer, module)
    heat.on_test_end(trainer, module)
    assert not logger.logged


def test_without_w_and_b_no_cloud_is_kept(tmp_path: Path) -> None:
    trainer, heat = trainer_with(CSVLogger(tmp_path)), HeatMaps()
    batch, prediction = batch_and_scores([True])
    heat.on_test_batch_end(trainer, L.LightningModule(), prediction, batch, 0)
    heat.on_test_end(trainer, L.LightningModule())
    assert heat._scenes == {}


def test_w_and_b_alone_gets_a_logger_with_a_folder_per_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folders = []
    for _ in range(2):
        first, second = with_folder([WandbLogger(name="recipe", save_dir=str(tmp_path), offline=True)])
        assert isinstance(first, CSVLogger)
        assert isinstance(second, WandbLogger)
        folders.append(Path(first.log_dir))
    assert folders == [tmp_path / "recipe" / f"version_{number}" for number in range(2)]
    assert with_folder([]) == []


def config(**settings: Any) -> dict[str, Any]:
    logger = SimpleNamespace(
        class_path="lightning.pytorch.loggers.WandbLogger",
        init_args=SimpleNamespace(**{"offline": False, "log_model": False, **settings}),
    )
    return {"logger": [SimpleNamespace(class_path="lightning.pytorch.loggers.CSVLogger"), logger]}


def test_what_w_and_b_cannot_do_is_said_before_the_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly3d.lit.run_folder.find_spec", lambda name: util.find_spec("json"))
    check_loggers(config())
    check_loggers({"logger": True})
    check_loggers({})
    with pytest.raises(InputError, match="no checkpoints offline; leave out `log_model`"):
        check_loggers(config(offline=True, log_model=True))
    monkeypatch.setattr("anomaly3d.lit.run_folder.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'anomaly3d\[wandb\]'"):
        check_loggers(config())
    check_loggers({"logger": SimpleNamespace(class_path="lightning.pytorch.loggers.CSVLogger")})
