"""The schedule, the truth that a detector never sees, and the optimizer's share of the parameters."""

from __future__ import annotations

import math
import subprocess
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import lightning as L
import pytest
import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.data.index import CloudRecord
from anomaly3d.errors import InputError
from anomaly3d.lit import record
from anomaly3d.lit.checkpoints import WholeCheckpoints, stopped
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.lit.point_scores import choose
from anomaly3d.lit.prediction_files import PredictionFiles
from anomaly3d.lit.record import settings
from anomaly3d.lit.run_facts import scoring_costs
from anomaly3d.lit.schedule import warmup_cosine
from anomaly3d.metrics.result import EvaluationResult
from anomaly3d.models.base import Detector
from anomaly3d.ops.stages import stage
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


def test_schedule_is_linear_then_a_half_cosine() -> None:
    factors = [warmup_cosine(step, 10, 110, 0.1) for step in range(111)]
    assert factors[:10] == pytest.approx([0.1 + 0.9 * step / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[35] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factors[110] == pytest.approx(0)
    assert warmup_cosine(0, 0, 50, 0.1) == 1


@pytest.mark.parametrize(("epochs", "steps"), [(6, -1), (-1, 12), (1000, 12)])
def test_a_training_steps_at_the_rates_of_the_schedule(epochs: int, steps: int) -> None:
    """Twelve steps in six epochs, whichever limit ends them: the warm-up is two epochs long."""
    rates: list[float] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = AnomalyModule(Distance(), lr=1e-2, warmup_epochs=2, warmup_lr=1e-3)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"max_epochs": epochs, "max_steps": steps, "enable_progress_bar": False}
    L.Trainer(callbacks=[Rates()], **settings).fit(module, Clouds("unused"))
    # Two steps an epoch: four of warm-up from a tenth of the peak, then half a cosine over eight, zero behind the last.
    warmup = [1e-3 + 9e-3 * step / 4 for step in range(4)]
    assert rates == pytest.approx([*warmup, *(5e-3 * (1 + math.cos(math.pi * step / 8)) for step in range(8))])


class Distance(Detector):
    """Scores a point by its distance from a learned centre; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.seen: list[PointCloudBatch] = []

    def loss(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        return {"loss": (batch.xyz - self.centre).square().mean()}

    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        self.seen.append(batch)
        points = (batch.xyz - self.centre).norm(dim=1)
        return AnomalyPrediction(points, torch.stack([part.max() for part in batch.split(points)]))


class Clouds(PointCloudDataModule):
    """Two batches in memory."""

    def setup(self, stage: str | None = None) -> None:
        self.category_names = ("thing",)

    def train_dataloader(self) -> DataLoader[PointCloudBatch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        clouds = [torch.randn(20, 3), torch.randn(30, 3)]
        masks = [torch.zeros(20, dtype=torch.bool), torch.arange(30) < 5]
        batches = [PointCloudBatch.pack(clouds, [f"a{i}", f"b{i}"], [0, 0], [0, 1], masks) for i in range(2)]
        return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]

    test_dataloader = val_dataloader = train_dataloader  # pyright: ignore[reportAssignmentType]


class Undecided(Distance):
    """Learns nothing in its first pass."""

    passes = 0

    @property
    def learns(self) -> bool:
        return self.passes > 0

    def finish_pass(self) -> bool:
        self.passes += 1
        return False


def test_a_pass_that_learns_nothing_leaves_the_optimizer_as_new() -> None:
    detector = Undecided()
    module = AnomalyModule(detector, lr=0.1, weight_decay=0.1)
    found = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            state = trainer.optimizers[0].state.get(detector.centre, {})
            found.append((detector.centre.tolist(), int(state.get("step", 0))))

    trainer = L.Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "logger": False},
        **{"callbacks": [Watch()], "enable_checkpointing": False, "enable_progress_bar": False},
    )
    trainer.fit(module, Clouds("unused"))
    assert found[:2] == [([1.0] * 3, 0)] * 2
    assert [step for _, step in found[2:]] == [1, 2]
    assert found[2][0] != [1.0] * 3


class Enough(L.Callback):
    """Asks for the end in the first epoch, as EarlyStopping may."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.should_stop = True


class Kill(L.Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise SystemExit


def test_a_training_that_waits_for_its_least_epochs_waits_behind_a_kill_too(tmp_path: Path) -> None:
    def train(*callbacks: L.Callback, ckpt_path: Path | None = None) -> int:
        save = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
        trainer = L.Trainer(
            **{"min_epochs": 4, "max_epochs": 9, "accelerator": "cpu", "logger": False},
            **{"callbacks": [*callbacks, Enough(), save], "enable_progress_bar": False},
        )
        trainer.fit(AnomalyModule(Distance()), Clouds("unused"), ckpt_path=ckpt_path)
        return trainer.current_epoch

    with pytest.raises(SystemExit):
        train(Kill())
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    assert not stopped(last)
    assert train(ckpt_path=last) == 4
    assert stopped(last)
    assert train() == 4


def test_scoring_sees_no_truth_and_frozen_parameters_stay() -> None:
    detector, data = Distance(), Clouds("unused")
    module = AnomalyModule(detector, lr=0.1, weight_decay=0.1)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert detector.seen
    assert all(b.label is None and b.mask is None and b.category is None for b in detector.seen)
    assert torch.equal(detector.frozen, torch.ones(3))
    assert (detector.centre < 0.9).all()
    assert detector.categories == ("thing",)
    assert module.result is not None
    assert module.result.rows[0].clouds == 4


class Rows(PointCloudDataModule):
    """The same six clouds every epoch, in batches of a given size."""

    def __init__(self, size: int) -> None:
        super().__init__("unused", val_normal=0, val_defective=0)
        self.size = size

    def setup(self, stage: str | None = None) -> None:
        self.category_names = ("thing",)

    def train_dataloader(self) -> DataLoader[PointCloudBatch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        clouds = torch.randn(6, 20, 3, generator=torch.Generator().manual_seed(0))
        batches = [
            PointCloudBatch.pack(list(part), [f"{i}{j}" for j in range(len(part))], [0] * len(part))
            for i, part in enumerate(clouds.split(self.size))
        ]
        return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


class Plain(AnomalyModule):
    """Steps in proportion to the gradient; keeps what is logged."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def on_train_epoch_end(self) -> None:
        self.logged = self.trainer.callback_metrics["train/loss"].item()


def test_an_incomplete_group_of_accumulated_batches_steps_as_one_large_batch() -> None:
    def train(size: int, accumulate: int) -> tuple[Tensor, float, int]:
        module = Plain(Distance())
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accumulate_grad_batches=accumulate,
        )
        trainer.fit(module, Rows(size))
        return cast(Distance, module.detector).centre.detach(), module.logged, trainer.global_step

    # Six batches of one: a group of four and one of two. Two of three: an incomplete group alone.
    for small, accumulate, large, steps in ((1, 4, 4, 4), (3, 4, 6, 2), (1, 3, 3, 4)):
        accumulated, whole = train(small, accumulate), train(large, 1)
        assert accumulated[2] == whole[2] == steps
        torch.testing.assert_close(accumulated[0], whole[0], rtol=1e-6, atol=1e-6)
    # What is logged is the loss itself, not the weighted one: here of the second epoch, behind a step of one batch.
    centre, clouds = torch.ones(3, requires_grad=True), next(iter(Rows(6).train_dataloader())).xyz
    (gradient,) = torch.autograd.grad((clouds - centre).square().mean(), centre)
    expected = (clouds - (centre - 0.5 * gradient)).square().mean()
    assert train(6, 4)[1] == pytest.approx(expected.item(), rel=1e-5)


def test_thresholds_come_from_validation_and_training_is_timed() -> None:
    module, data = AnomalyModule(Distance(), lr=0.1), Clouds("unused")
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=1, enable_progress_bar=False, num_sanity_val_steps=2, **settings)
    trainer.fit(module, data)
    assert module.result is not None
    chosen = module.thresholds
    assert chosen == module.result.best_thresholds is not None
    assert math.isnan(module.result.rows[0].o_auroc_ci_low)  # no bootstrap at every epoch
    assert 0 < module.train_seconds < 60

    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = AnomalyModule(Distance(), lr=0.1)
    other.trainer = trainer
    other.on_load_checkpoint(checkpoint)
    assert other.thresholds == chosen
    assert other.train_seconds == module.train_seconds
    checkpoint["anomaly3d"]["scoring"] = {"smooth": "spatial", "gone": 1}
    with mock.patch.object(Distance, "scoring_settings", return_value={"smooth": "none", "new": 2}):
        with pytest.warns(UserWarning, match="chosen with another smooth, new and are not used"):
            other.on_load_checkpoint(checkpoint)
        assert other.thresholds is None  # other scores: theirs would be others
    other.on_load_checkpoint(checkpoint)
    assert other.thresholds == chosen
    del checkpoint["anomaly3d"]["thresholds"], checkpoint["anomaly3d"]["train_seconds"]  # as older versions wrote it
    other.on_load_checkpoint(checkpoint)
    assert other.thresholds is None

    trainer.test(module, data, verbose=False)
    assert module.thresholds == chosen
    assert module.result.rows[0].o_recall >= 0
    assert module.test_seconds > 0


@pytest.mark.parametrize("epochs", [2, 3])
def test_thresholds_are_of_the_last_weights_or_there_are_none(epochs: int) -> None:
    module = AnomalyModule(Distance(), lr=0.1)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=epochs, check_val_every_n_epoch=2, enable_progress_bar=False, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, Clouds("unused"))
    told = [str(w.message) for w in caught if "operating point" in str(w.message)]
    assert (module.thresholds is not None) == (epochs == 2)
    assert len(told) == (epochs == 3)


def test_a_training_that_goes_on_has_the_optimizer_of_its_checkpoint() -> None:
    checkpoint: dict[str, Any] = {"state_dict": {}}
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_epochs=0, enable_progress_bar=False, **settings)
    module = AnomalyModule(Distance(), lr=0.1)
    trainer.fit(module, Clouds("unused"))
    checkpoint["state_dict"] = module.state_dict()
    module.on_save_checkpoint(checkpoint)
    other = AnomalyModule(Distance(), lr=0.2)
    other.trainer = trainer
    trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(InputError, match=r"model.lr=0.1 .* the configuration says 0.2"):
        other.on_load_checkpoint(checkpoint)
    trainer.state.fn = TrainerFn.TESTING  # which no optimizer decides
    other.on_load_checkpoint(checkpoint)


def test_the_commit_is_of_our_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    installed = tmp_path / "venv" / "record.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.setattr(record, "__file__", str(installed))
    assert record.git_commit() is None
    for arguments in (["add", "."], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    assert record.git_commit()


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files = tmp_path / "last.ckpt", WholeCheckpoints()
    files.save_checkpoint({"epoch": 1}, path)

    def broken(self: Any, checkpoint: Any, path: Path, options: Any = None) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", broken)
    with pytest.raises(KeyboardInterrupt):
        files.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


class Product(Distance):
    """Scores behind a matrix product of 3 x 3 x 5, in a stage."""

    passes = 0
    fails_when_counted = False

    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        self.passes += 1
        if self.fails_when_counted and not torch.backends.mha.get_fastpath_enabled():
            raise TypeError("no counter is known here")
        with stage("product"):
            time.sleep(0.01)
            _ = torch.ones(3, 3) @ torch.ones(3, 5)
        return super().score(batch)


def test_what_scoring_takes_is_measured() -> None:
    module, data = AnomalyModule(Product(), lr=0.1), Clouds("unused")
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert scoring_costs(module)["multiply_adds_per_cloud"] is None
    before = cast(Product, module.detector).passes
    trainer.test(module, data, verbose=False)
    batches = len(data.test_dataloader())
    costs = scoring_costs(module)
    clouds, seconds = module.scored_clouds, costs["stage_seconds_per_cloud"]
    assert clouds == 4
    assert costs["multiply_adds_per_cloud"] == 3 * 3 * 5 * batches // clouds
    assert list(seconds) == ["other", "product", "reading and metrics"]
    assert cast(Product, module.detector).passes == before + batches + 1
    assert module.stage_seconds["product"] >= 0.01 * batches
    assert sum(seconds.values()) * clouds == pytest.approx(module.test_seconds, rel=1e-3)  # not the pass that counts
    cast(Product, module.detector).fails_when_counted = True
    with pytest.warns(UserWarning, match=r"multiply-adds can't be counted \(TypeError: no counter is known here\)"):
        trainer.test(module, data, verbose=False)
    assert scoring_costs(module)["multiply_adds_per_cloud"] is None
    assert module.result is not None


def test_memory_of_training_is_remembered_for_a_test_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(peak: int) -> tuple[AnomalyModule, L.Trainer]:
        monkeypatch.setattr(
            "anomaly3d.lit.module.peak_mib", lambda: {"peak_memory_mib": peak, "peak_gpu_memory_mib": None}
        )
        trainer = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        return AnomalyModule(Distance(), lr=0.1), trainer

    module, trainer = run(700)
    trainer.fit(module, Clouds("unused"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for peak, expected in ((300, 700), (900, 900)):
        module, trainer = run(peak)
        trainer.test(module, Clouds("unused"), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert scoring_costs(module)["peak_memory_mib"] == expected
        assert scoring_costs(module)["peak_gpu_memory_mib"] is None


@pytest.mark.parametrize("exact", [True, False])
def test_tests_can_be_exact(exact: bool) -> None:
    module = AnomalyModule(Distance(), exact_metrics=exact)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.test(module, Clouds("unused"), verbose=False)
    assert module.result is not None
    assert (module.result.best_thresholds is not None) == exact


def test_the_hash_of_a_configuration_leaves_out_where_files_go(tmp_path: Path) -> None:
    detector = {"class_path": "x.Y", "init_args": {"backbone_weights": "small"}}
    values = {"seed_everything": 0, "model": {"detector": detector}, "data": {"root": "r"}, "ckpt_path": "a"}

    def hashed(**trainer: Any) -> dict[str, str | None]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**values, "trainer": trainer}))
        return settings(tmp_path / "config.yaml")

    one = hashed(max_epochs=3, logger={"save_dir": "a"})
    assert one["backbone_weights"] == "small"
    assert one == hashed(max_epochs=3, logger={"save_dir": "b"})
    assert one != hashed(max_epochs=4, logger={"save_dir": "a"})
    assert one != hashed(max_epochs=3, callbacks=[{"class_path": "EarlyStopping"}])
    values["checkpoint"] = {"dirpath": "a", "every_n_epochs": 2}
    kept = hashed(max_epochs=3)
    assert kept != one
    values["checkpoint"] = {"dirpath": "b", "every_n_epochs": 2}
    assert kept == hashed(max_epochs=3)
    assert settings(tmp_path / "none.yaml") == {"backbone_weights": None, "config_sha256": None}


def test_pictures_show_as_many_kinds_as_there_are() -> None:
    kinds = ["bulge", "bulge", "crak", "good", "hole", "hole"]
    records = [
        CloudRecord(Path(f"{k}{i}.pcd"), "c", "test", int(k != "good"), k, None, "") for i, k in enumerate(kinds)
    ]
    three = choose(records, 3)
    assert sorted(name[:10] for name in three) == ["c/test/bul", "c/test/cra", "c/test/hol"]
    assert choose(records, 2) == three[:2]
    assert sorted(choose(records, 9)) == sorted(r.sample_id for r in records if r.label)
    assert choose([r for r in records if not r.label], 2) == []
    elsewhere = [replace(r, category=name) for name in ("d", "e", "f") for r in records]
    firsts = {choose([r for r in elsewhere if r.category == name], 1)[0].split("/")[2] for name in ("d", "e", "f")}
    assert len(firsts) > 1


def test_predictions_that_would_overwrite_each_other_are_refused(tmp_path: Path) -> None:
    def records(split: str) -> list[CloudRecord]:
        files = {"new/a/b": "new/a/b.npy", "new/a.b": "new/a.b.npy"}
        return [CloudRecord(Path(file), "c", "test", -1, "", None, name, name) for name, file in files.items()]

    trainer = SimpleNamespace(datamodule=SimpleNamespace(records=records), log_dir=str(tmp_path / "log"))
    with pytest.raises(InputError, match=r"new/a\.b\.npy: its scores would have the name of those of new/a/b\.npy"):
        PredictionFiles().on_predict_start(cast(L.Trainer, trainer), cast(L.LightningModule, None))
    assert not (tmp_path / "log").exists()


def test_users_are_told_when_histograms_are_too_coarse() -> None:
    module, data = AnomalyModule(Distance(), lr=0.1), Clouds("unused")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with mock.patch.object(EvaluationResult, "largest_error", 0.02), pytest.warns(UserWarning, match="off by 2 points"):
        trainer.test(module, data, verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.test(module, data, verbose=False)
    assert not any("off by" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 3, "max_epochs": -1}, r"max_steps: 3 ends within an epoch of 2 steps"),
        ({"max_steps": 3, "max_epochs": 4, "accumulate_grad_batches": 2}, None),  # one step an epoch
        ({"max_steps": 3, "max_epochs": 1}, None),  # the epoch is over before
        ({"max_epochs": 1, "val_check_interval": 0.5}, r"val_check_interval: validates within an epoch of 2 batches"),
        ({"max_epochs": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}, "val_check_interval"),
        ({"max_epochs": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}, None),
    ],
)
def test_nothing_ends_or_validates_within_an_epoch(settings: dict[str, Any], said: str | None) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(**quiet, enable_progress_bar=False, num_sanity_val_steps=0, **settings)
    refused = nullcontext() if said is None else pytest.raises(InputError, match=said)
    with refused:
        trainer.fit(AnomalyModule(Distance()), Clouds("unused"))


def test_an_epoch_that_time_ends_leaves_the_checkpoint_of_the_one_before(tmp_path: Path) -> None:
    class Clock(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop |= trainer.current_epoch == 1  # as lightning's timer of max_time does

    saved = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(callbacks=[saved, Clock()], max_epochs=3, limit_val_batches=0, **settings)
    with pytest.raises(InputError, match=r"over within epoch 2"):
        trainer.fit(AnomalyModule(Distance()), Clouds("unused"))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
