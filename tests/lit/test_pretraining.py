"""`anomaly3d pretrain` through the real command line: what it leaves behind, killed, resumed, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from safetensors import safe_open
from safetensors.torch import load_file

from anomaly3d.__main__ import main
from anomaly3d.data.procedural.datamodule import ProceduralDataModule
from anomaly3d.errors import InputError
from anomaly3d.lit.pretrain_cli import PretrainingCLI
from anomaly3d.lit.pretraining import PretrainingModule, Reconstructions
from anomaly3d.models.backbones.weights import frozen_point_mae

RECIPE = Path(__file__).parents[1] / "conf" / "pretraining.yaml"


def arguments(output: Path, *more: str) -> list[str]:
    return ["pretrain", "--config", str(RECIPE), "--output", str(output), *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pretraining") / "whole"
    main(arguments(output))
    return output


@pytest.mark.slow
def test_leaves_weights_curve_and_pictures(finished: Path) -> None:
    weights = finished / "point_mae_tiny.safetensors"
    model = frozen_point_mae(weights=str(weights))
    assert model.size == "tiny"
    assert all(torch.isfinite(p).all() for p in model.state_dict().values())
    with safe_open(weights, "pt") as file:
        about = file.metadata()
    assert (about["epochs"], about["steps"], about["seed"]) == ("3", "6", "0")
    curve = pd.read_csv(finished / "log" / "version_0" / "metrics.csv")
    assert curve.notna().sum()[["train/chamfer", "val/chamfer"]].tolist() == [6, 3]
    pictures = sorted((finished / "reconstructions").iterdir())
    assert [picture.name for picture in pictures] == [f"epoch_000{epoch}.png" for epoch in (1, 2, 3)]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_a_seed_that_is_no_number_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for answer in ("true", "false"):
        with pytest.raises(SystemExit):
            main(arguments(tmp_path, f"--seed_everything={answer}"))
        assert "seed_everything" in capsys.readouterr().err


def test_weights_and_biases_gets_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, list[str], int]] = []

    class Fake(WandbLogger):
        def __init__(self) -> None: ...

        def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
            logged.append((key, images, step or 0))

    module = PretrainingModule(**BUILT)
    module.last_validation = module.reconstruct(torch.randn(2, 300, 3), 32)
    trainer = SimpleNamespace(
        is_global_zero=True, sanity_checking=True, current_epoch=4, global_step=7, loggers=[Fake()]
    )
    pictures = Reconstructions(tmp_path)
    pictures.on_validation_epoch_end(trainer, module)  # pyright: ignore[reportArgumentType]
    assert not logged
    assert not list(tmp_path.iterdir())
    trainer.sanity_checking = False
    pictures.on_validation_epoch_end(trainer, module)  # pyright: ignore[reportArgumentType]
    picture = tmp_path / "reconstructions" / "epoch_0005.png"
    assert logged == [("val/reconstructions", [str(picture)], 7)]
    assert picture.stat().st_size > 1000


def test_one_seed_decides_weights_draws_and_clouds(tmp_path: Path) -> None:
    built = [PretrainingCLI([*arguments(tmp_path, f"--seed_everything={seed}")[1:]]) for seed in (3, 3, 4)]
    assert [(cli.model.seed, cli.datamodule.stream.seed) for cli in built] == [(3, 3), (3, 3), (4, 4)]
    first = [next(cli.model.parameters()) for cli in built]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_loggers_and_callbacks_of_the_configuration_are_there_besides(tmp_path: Path) -> None:
    asked = ["--trainer.logger+=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'mine'}"]
    asked += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/chamfer"]
    for more, loggers in ((asked, 2), ([], 1)):
        trainer = PretrainingCLI([*arguments(tmp_path / "out", *more)[1:]]).trainer
        assert len(trainer.loggers) == loggers
        assert str(trainer.loggers[0].save_dir) == str(tmp_path / "out")
        names = [type(callback).__name__ for callback in trainer.callbacks]  # pyright: ignore[reportAttributeAccessIssue]
        assert {"EncoderFile", "Reconstructions", "ModelCheckpoint"} <= set(names)
        assert ("EarlyStopping" in names) == bool(more)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "anomaly3d", *arguments(output)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # other threads sum in another order
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = output / "checkpoints" / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    main(arguments(output))
    whole = load_file(finished / "point_mae_tiny.safetensors")
    resumed = load_file(output / "point_mae_tiny.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "value"), [("lr", "0.5"), ("translate", "0.7"), ("warmup_epochs", "7.0")])
def test_another_training_s_folder_is_refused(
    setting: str, value: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments(finished, f"--model.{setting}", value))
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "last.ckpt" in message
    assert f"instead of {value}" in message
    assert "--output" in message


BUILT: dict[str, Any] = {"size": "tiny", "decoder_depth": 1, "groups": 16}


def prepared(
    data: dict[str, Any] | None = None, max_epochs: int = 3, trainer: dict[str, Any] | None = None, **settings: Any
) -> PretrainingModule:
    """A pre-training that is about to start or to go on."""
    asked = {"accelerator": "cpu", "max_epochs": max_epochs, "logger": False, "enable_checkpointing": False}
    made = Trainer(**asked | (trainer or {}))
    made.ckpt_path = "last.ckpt"
    module = PretrainingModule(**BUILT | settings)
    module.trainer = made
    made.datamodule = ProceduralDataModule(**data or {})  # pyright: ignore[reportAttributeAccessIssue]
    return module


OTHERS: dict[str, Any] = {
    **{"size": "point_bert", "decoder_depth": 2, "drop_path": 0.2, "groups": 17, "patch_sizes": {64: 1.0}},
    **{"min_points": 512, "max_share": 0.07, "mask_ratio": 0.5, "scale": (0.7, 1.5), "translate": 0.1, "lr": 1e-2},
    **{"weight_decay": 0.04, "warmup_epochs": 2, "clip_gradient": 1.0, "norm_momentum": 0.5, "seed": 1},
}


def test_every_setting_that_decides_a_pretraining_is_asked_for_again() -> None:
    checkpoint: dict[str, Any] = {}
    prepared().on_save_checkpoint(checkpoint)
    assert set(signature(PretrainingModule).parameters) == set(OTHERS)
    prepared().on_load_checkpoint(checkpoint)
    prepared({"num_workers": 0}).on_load_checkpoint(checkpoint)
    for name, value in OTHERS.items():
        with pytest.raises(InputError, match=rf"last\.ckpt: of a pre-training with {name}=[^=]*--output"):
            prepared(**{name: value}).on_load_checkpoint(checkpoint)
    for data, epochs, named in (
        ({"points": 4096}, 3, "points=8192"),
        ({"clouds_per_epoch": 2048}, 3, "clouds_per_epoch"),
        ({"batch_size": 16}, 3, "batch_size"),
        ({"seed": 1}, 3, "seed of the stream"),
        ({}, 4, "max_epochs=3 instead of 4"),
    ):
        with pytest.raises(InputError, match=f"of a pre-training with {named}"):
            prepared(data, epochs).on_load_checkpoint(checkpoint)
    for setting, value, named in (
        ("accumulate_grad_batches", 2, "accumulate_grad_batches=1 instead of 2"),
        ("precision", "bf16-mixed", "precision=32-true instead of bf16-mixed"),
    ):
        with pytest.raises(InputError, match=f"of a pre-training with {named}"):
            prepared(trainer={setting: value}).on_load_checkpoint(checkpoint)
    old = {name: value for name, value in checkpoint["anomaly3d"]["pretraining"].items() if name != "norm_momentum"}
    with pytest.raises(InputError, match=r"norm_momentum=0\.02 instead of 0\.1"):
        prepared().on_load_checkpoint({"anomaly3d": {"pretraining": old}})
    # An older version kept fewer of them; another kind of checkpoint has none.
    del checkpoint["anomaly3d"]["pretraining"]["translate"]
    prepared(translate=0.1).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"last\.ckpt: not of a pre-training"):
        prepared().on_load_checkpoint({"anomaly3d": {"detector": "SeDiR"}})


def test_steps_draw_every_size_and_no_patch_is_larger_than_its_share() -> None:
    module = PretrainingModule("tiny", patch_sizes={32: 0.5, 512: 0.5}, min_points=1024, max_share=0.08)
    assert module.point_range(32, 8192) == (1024, 8192)
    assert module.point_range(512, 8192) == (6400, 8192)
    assert module.point_range(512, 4096) == (4096, 4096)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"patch_sizes": {8: 1.0}}, "patch_sizes"), ({"mask_ratio": 0.0}, "mask_ratio"), ({"mask_ratio": 1.0}, "mask")],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        PretrainingModule("tiny", **settings)  # pyright: ignore[reportArgumentType]


def test_accumulated_batches_draw_each_their_own_and_an_incomplete_group_counts_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three batches in groups of two: the two of a step differ in their draws, the one left over weighs double."""
    module = PretrainingModule(size="tiny", groups=16, decoder_depth=1, patch_sizes={32: 1.0}, min_points=256)
    trainer = SimpleNamespace(accumulate_grad_batches=2, num_training_batches=3, global_step=0)
    monkeypatch.setattr(PretrainingModule, "trainer", trainer)
    monkeypatch.setattr(PretrainingModule, "global_step", 0)
    monkeypatch.setattr(PretrainingModule, "log", lambda *args, **kwargs: None)
    clouds = torch.randn(2, 512, 3, generator=torch.Generator().manual_seed(0))
    losses = [module.training_step(clouds, index).item() for index in range(3)]
    assert losses[0] != losses[1]
    assert losses[2] == pytest.approx(2 * losses[0], rel=1e-6)  # the same draws here, as the step is the same
