"""Two GPUs with two clouds each, and one that accumulates two batches of two, take the same training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import TWO, checkpoint, run

CONF = Path(__file__).parents[1] / "conf" / "mamba3dad.yaml"

# Nothing is drawn but the order of the clouds: each process draws from a stream of its own (`lit/random_state.py`),
# which the single one can't repeat. So the noise is the same for every cloud here.
FIXED_NOISE = """
import torch
from anomaly3d.models.mamba3dad.generator import AnomalyGenerator, Corrupted
from anomaly3d.models.mamba3dad.mamba3dad import Mamba3dAD

class FixedGenerator(AnomalyGenerator):
    def forward(self, features, shares=None):
        slots, width = features.shape[1:]
        labels = (torch.arange(slots) % 5 == 0).float().expand(len(features), -1)
        noise = self.sigma * torch.sin(torch.arange(slots * width).float()).reshape(slots, width)
        return Corrupted(features + self.gamma * labels[..., None] * noise, labels)

class FixedNoise(Mamba3dAD):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.generator.__class__ = FixedGenerator
"""
NO_DRAWS = {
    "yaw": "false",
    "jitter": "0.0",
    "scale": "0.0",
    "dropout_points": "0.0",
    "translation": "0.0",
    "dropout": "0.0",
    "noise_probability": "0.2",
}

# What they add to a whole column of the affinity, or to all keys, a normalisation takes away: their gradients are
# rounding errors, from which Adam makes steps.
CANCELLED = {"detector.gsas.bias", "detector.gsas.down.bias", "detector.discriminator.attention.in_proj_bias"}


def train(folder: Path, root: Path, *trainer: str) -> dict[str, Any]:
    folder.mkdir()
    (folder / "fixed_noise.py").write_text(FIXED_NOISE)
    recipe = CONF.read_text().replace("anomaly3d.models.mamba3dad.mamba3dad.Mamba3dAD", "fixed_noise.FixedNoise")
    (folder / "recipe.yaml").write_text(recipe)
    settings = [f"--model.detector.init_args.{name}={value}" for name, value in NO_DRAWS.items()]
    run(folder, "fit", folder / "recipe.yaml", root, "--trainer.limit_val_batches=0", *settings, *trainer)
    return torch.load(checkpoint(folder), weights_only=True)


@pytest.mark.slow
def test_two_processes_and_two_accumulated_batches_take_the_same_steps(parts: Path, tmp_path: Path) -> None:
    two = train(tmp_path / "two", parts, *TWO)
    one = train(tmp_path / "one", parts, "--trainer.accumulate_grad_batches=2")
    half = train(tmp_path / "half", parts, "--data.batch_size=1", "--trainer.accumulate_grad_batches=2")
    start = train(tmp_path / "start", parts, "--model.lr=1e-12", "--model.warmup_lr=0")
    # Four clouds: an epoch is one step of four, or two of two.
    assert [trained["global_step"] for trained in (two, one, half)] == [2, 2, 4]
    learned = 0
    for name, value in two["state_dict"].items():
        atol = 2e-4 if name in CANCELLED else 1e-5  # a hundredth of a step: Adam magnifies what rounding leaves of zero
        torch.testing.assert_close(value, one["state_dict"][name], rtol=1e-4, atol=atol, msg=name)
        if name.startswith("detector.backbone."):
            assert torch.equal(value, start["state_dict"][name]), name
        else:
            learned += not torch.allclose(value, start["state_dict"][name], rtol=1e-4, atol=1e-4)
    assert learned > 20
    gamma = "detector.generator.raw_gamma"  # it learns from positive labels alone
    assert two["state_dict"][gamma] != start["state_dict"][gamma]
    assert not torch.allclose(
        two["state_dict"]["detector.gsas.queries"], half["state_dict"]["detector.gsas.queries"], rtol=1e-4, atol=1e-6
    )
