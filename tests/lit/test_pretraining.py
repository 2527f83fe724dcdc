"""`anomaly3d pretrain` through the real command line: what it leaves behind, killed, resumed, refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from anomaly3d.__main__ import main
from anomaly3d.errors import InputError
from anomaly3d.lit.pretraining import PretrainingModule
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
    assert (finished / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_weights(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "anomaly3d", *arguments(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
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
