"""The one LightningModule: any detector, its optimizer, and the evaluator around it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import AdamW, Optimizer

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.errors import InputError, check_range
from anomaly3d.lit.accumulation import accumulation_weight
from anomaly3d.lit.record import peak_mib, run_seed, training_facts
from anomaly3d.lit.saved import Saved
from anomaly3d.lit.schedule import with_schedule
from anomaly3d.metrics.bootstrap import REPLICATES
from anomaly3d.metrics.evaluator import EvaluationResult, Evaluator
from anomaly3d.metrics.result import Thresholds
from anomaly3d.models.base import Detector
from anomaly3d.models.components.pose_store import spared_seconds
from anomaly3d.ops.multiply_adds import multiply_adds
from anomaly3d.ops.stages import measured
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

_LOOSE = 1e-2
"""Certain bound on the error of a point metric from which users are told."""


class AnomalyModule(L.LightningModule):
    """Trains and evaluates a detector.

    AdamW with linear warm-up and cosine decay to zero, stepped every batch. Training ends with the last
    checkpoint; nothing is chosen on test data. Each validation during training chooses the thresholds of largest F1 on
    its clouds, made from training clouds [ours: papers name no threshold; a quantile of training scores would fix the
    share of normal clouds that is refused, and say nothing of defects]; a checkpoint of the same weights carries them,
    and its test reports precision and recall there.

    Args:
        detector: the model; frozen parameters are left out of the optimizer.
        lr: peak learning rate [paper, both: 1e-4].
        weight_decay: of AdamW, on every trained parameter [Mamba3dAD: 1e-2; SeDiR: inferred 1e-4].
        betas: of AdamW [Mamba3dAD; SeDiR: inferred, torch's defaults].
        warmup_epochs: length of the warm-up [Mamba3dAD: 2; SeDiR: none].
        warmup_lr: learning rate at which the warm-up starts [Mamba3dAD].
        exact_metrics: keep every point of a test and sort, instead of counting into histograms of fixed size whose
            error is bounded and reported (`metrics/evaluator.py`). Validation is exact in any case.

    Attributes:
        thresholds: of a validation of the present weights; None if they were trained on since, or never validated, or
            if their scores are made in another way now.
        train_seconds: wall time of training so far, over all its parts.
        test_seconds: wall time from the first batch of the last evaluation to its result. All times count a
            registration that was found on disk (`models/components/pose_store.py`) with the time that it had taken.
        stage_seconds: wall time of the stages of scoring in the last evaluation, over the clouds of this process.
        scored_clouds: how many these were.
        multiply_adds: of scoring, a cloud: the mean of the first batch of the last test; None before.
        peak_mib: most memory that training and the last evaluation held, whether in one process or in two.
    """

    def __init__(
        self,
        detector: Detector,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_epochs: float = 0,
        warmup_lr: float = 1e-5,
        exact_metrics: bool = False,
    ) -> None:
        super().__init__()
        check_range(1e-12, math.inf, lr=lr)
        check_range(0, math.inf, weight_decay=weight_decay, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr)
        self.detector = detector
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.warmup_epochs = warmup_epochs
        self.warmup_lr = warmup_lr
        self.exact_metrics = exact_metrics
        self.thresholds: Thresholds | None = None
        self._outdated_thresholds = False
        self.trained_seed: int | None = None  # of the checkpoint in use
        self.trained_with: dict[str, Any] | None = None  # likewise: configuration, code, versions and machine
        self._should_stop = False  # what the checkpoint in use had decided
        self.train_seconds = self.test_seconds = 0.0
        self.stage_seconds: dict[str, float] = {}
        self.scored_clouds = 0
        self.multiply_adds: int | None = None
        self.peak_mib: dict[str, int | None] = {}
        self._first_tested: PointCloudBatch | None = None
        self._fit_started: float | None = None
        self._evaluation_started = 0.0
        self.evaluator: Evaluator | None = None
        self.result: EvaluationResult | None = None

    # -- life cycle --------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Tell the detector the training categories; a checkpoint that is loaded afterwards brings its own."""
        if not self.detector.categories:
            self.detector.configure(self._data.category_names)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained, warm-up and cosine per step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)
        return with_schedule(optimizer, self.trainer, self.warmup_epochs, self.warmup_lr / self.lr)

    def on_fit_start(self) -> None:
        """Try the validation; start the clock, and note what trains: where a training goes on, its last part."""
        if self.trainer.limit_val_batches:
            self._data.check_validation()
        self._fit_started = _clock()
        log_dir = self.trainer.log_dir if self.trainer.loggers else None
        self.trained_with = training_facts(None if log_dir is None else Path(log_dir) / "config.yaml")

    def on_train_start(self) -> None:
        """Refuse to end, or to validate, within an epoch: what the detector gathers over it would be missing.

        A training that had decided to stop and waited for its least number of epochs or steps still waits.
        """
        trainer, batches = self.trainer, self.trainer.num_training_batches
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
        within = "templates, memory banks and expected errors are gathered over whole epochs"
        if 0 < trainer.max_steps < steps * epochs and trainer.max_steps % steps:
            raise InputError(
                f"trainer.max_steps: {trainer.max_steps} ends within an epoch of {steps} steps, but {within}; give "
                f"trainer.max_epochs, or a multiple of {steps}"
            )
        if trainer.enable_validation and (trainer.val_check_batch is None or trainer.val_check_batch % batches):
            raise InputError(
                f"trainer.val_check_interval: validates within an epoch of {batches} batches, but {within}; leave it "
                "out, or give trainer.check_val_every_n_epoch"
            )
        self.trainer.should_stop |= self._should_stop and not self._trained_enough

    def on_fit_end(self) -> None:
        """Stop the clock; tell users who validated that it was too early for an operating point."""
        self.train_seconds, self._fit_started = self._trained_for(), None
        if self._outdated_thresholds and self.thresholds is None:
            rank_zero_warn(
                "no validation after the last epoch, so tests will have no operating point (precision, recall, F1 at a "
                "threshold); for one, let trainer.check_val_every_n_epoch divide trainer.max_epochs"
            )

    # -- training ----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: PointCloudBatch, batch_idx: int) -> None:
        """Thresholds are of the weights that they were chosen with, not of those that this step makes."""
        self._outdated_thresholds |= self.thresholds is not None
        self.thresholds = None

    def training_step(self, batch: PointCloudBatch, batch_idx: int) -> Tensor:
        """The detector's loss, weighted by `accumulation_weight`; every term of it is logged as it is."""
        with self._files_named():
            terms = self.detector.loss(batch)
        self.log_dict(
            {f"train/{name}": term.detach() for name, term in terms.items() if name != "loss"}, batch_size=len(batch)
        )
        self.log("train/loss", terms["loss"].detach(), prog_bar=True, batch_size=len(batch))
        return accumulation_weight(self.trainer, batch_idx) * terms["loss"]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A pass that learns nothing leaves the optimizer as it is: zeros would age its moments, and decay weights."""
        if not self.detector.learns:
            optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: PointCloudBatch, batch_idx: int) -> None:
        """Behind the last batch: before the validation and the checkpoint of this epoch."""
        if batch_idx + 1 == self.trainer.num_training_batches and self.detector.finish_pass():
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Before the checkpoint of an epoch that time ended: the one of the last whole epoch stays."""
        if not self.trainer.is_last_batch:
            raise InputError(
                f"trainer.max_time: over within epoch {self.current_epoch + 1}; the checkpoint, if there is one, is "
                "that of the last whole epoch"
            )

    # -- evaluation --------------------------------------------------------------------------------------------

    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Scores from the clouds alone: the truth is removed first, the category of `told_category` apart."""
        blind = batch.without_truth()
        if self.detector.told_category and batch.category is not None:
            blind = replace(blind, category=self._trained_category(batch.category))
        with self._files_named():
            return self.detector.score(blind)

    def on_validation_epoch_start(self) -> None:
        """A fresh evaluator: exact, as the sampler that Lightning gives validation repeats clouds under `ddp`."""
        self._start_evaluation(exact=True)

    def on_test_epoch_start(self) -> None:
        """A fresh evaluator."""
        self._first_tested = self.multiply_adds = None
        self._start_evaluation(exact=self.exact_metrics)

    def validation_step(self, batch: PointCloudBatch, batch_idx: int) -> AnomalyPrediction:
        """Score a batch of the validation split (training clouds with synthetic defects)."""
        return self._evaluate(batch)

    def test_step(self, batch: PointCloudBatch, batch_idx: int) -> AnomalyPrediction:
        """Score a batch of test clouds."""
        if self._first_tested is None:
            self._first_tested = batch
        return self._evaluate(batch)

    def predict_step(self, batch: PointCloudBatch, batch_idx: int) -> AnomalyPrediction:
        """Score clouds of unknown truth."""
        return self.score(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the macro means of the validation split."""
        self._finish_evaluation("val")
        assert self.result is not None
        if self._fitting and not self.trainer.sanity_checking:
            self.thresholds = self.result.best_thresholds

    def on_test_epoch_end(self) -> None:
        """Log the macro means of the test split."""
        self._finish_evaluation("test")
        assert self.result is not None
        if (first := self._first_tested) is not None:  # scored once more, behind the clock: the counter takes time
            self.multiply_adds = self._count(first)
            self._first_tested = None
        if (error := self.result.largest_error) > _LOOSE:
            rank_zero_warn(
                f"a point metric of one category may be off by {100 * error:.2g} points, as histograms of fixed size "
                "count its scores; --model.exact_metrics true keeps and sorts them"
            )

    def _start_evaluation(self, exact: bool) -> None:
        self._evaluation_started = _clock()
        self.stage_seconds, self.scored_clouds = {}, 0
        self.evaluator = Evaluator(
            self._data.category_names,
            self.detector.categories,
            exact,
            thresholds=None if self._fitting else self.thresholds,
            replicates=0 if self._fitting else REPLICATES,
            sources=self._data.sources(),
        ).to(self.device)

    def _evaluate(self, batch: PointCloudBatch) -> AnomalyPrediction:
        assert self.evaluator is not None
        with measured(_clock, self.stage_seconds):
            prediction = self.score(batch)
        self.scored_clouds += len(batch)
        self.evaluator.update(prediction, batch)
        return prediction

    def _finish_evaluation(self, stage: str) -> None:
        assert self.evaluator is not None
        self.result = self.evaluator.compute()
        self.log_dict({f"{stage}/{name}": value for name, value in self.result.mean.items() if not math.isnan(value)})
        self.evaluator = None
        self.test_seconds = _clock() - self._evaluation_started
        self.peak_mib = _larger(self.peak_mib, peak_mib())

    def _count(self, batch: PointCloudBatch) -> int | None:
        """Multiply-adds a cloud; None, with a warning, where it can't be counted: the scores are there."""
        try:
            with self.trainer.precision_plugin.test_step_context():
                return multiply_adds(partial(self.score, batch)) // len(batch)
        except Exception as error:
            rank_zero_warn(f"multiply-adds can't be counted ({type(error).__name__}: {error}); the record has none")
            return None

    def require_result(self, verb: str) -> None:
        """Raise InputError if the evaluation that has just ended saw no cloud: Lightning skips it in silence."""
        if self.result is None:
            raise InputError(
                f"{verb}: no clouds; data.val_normal, data.val_defective and the trainer's limits must leave some"
            )

    # -- checkpoints -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down which detector this is and which categories it was trained on."""
        checkpoint["anomaly3d"] = {
            "detector": type(self.detector).__name__,
            "categories": list(self.detector.categories),
            "settings": self.detector.fixed_settings(),
            "scoring": self.detector.scoring_settings(),
            "optimizer": self._optimizer_settings(),
            "seed": run_seed() if self.trained_seed is None else self.trained_seed,
            "thresholds": None if self.thresholds is None else asdict(self.thresholds),
            "train_seconds": self._trained_for(),
            "peak_mib": _larger(self.peak_mib, peak_mib()),
            "should_stop": self.trainer.should_stop,
            "stopped": self.trainer.should_stop and self._trained_enough,
            "trained_with": self.trained_with,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the layers that depend on the training categories.

        Raises:
            InputError: the checkpoint is of another detector, or of this one with other settings.
        """
        saved = Saved(str(self.trainer.ckpt_path), checkpoint)
        saved.check_detector(self.detector)
        if self._fitting:
            saved.check_resumed(self._data.category_names, self._optimizer_settings())
        elif self.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING):
            saved.warn_of_strangers(self._data.category_names)
        self.detector.configure(saved.categories)
        self.thresholds = saved.thresholds(self.detector)
        self.train_seconds = saved.facts.get("train_seconds", 0.0)
        self.peak_mib = saved.facts.get("peak_mib", {})
        self._should_stop = saved.facts.get("should_stop", False)
        self.trained_seed = saved.facts.get("seed")
        self.trained_with = saved.facts.get("trained_with")
        self.detector.make_room({name.removeprefix("detector."): value for name, value in saved.weights.items()})
        saved.check_weights(self.state_dict())

    @contextmanager
    def _files_named(self) -> Iterator[None]:
        """A detector knows a cloud by its sample id; users know its file."""
        try:
            yield
        except InputError as error:
            name, _, said = str(error).partition(": ")
            if (file := self._data.file_of(name)) is None:
                raise
            raise InputError(f"{file}: {said}") from error

    def _optimizer_settings(self) -> dict[str, Any]:
        """What a training that goes on takes from its checkpoint, whatever the configuration says."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, "betas": list(self.betas)}

    def _trained_for(self) -> float:
        return self.train_seconds + (0.0 if self._fit_started is None else _clock() - self._fit_started)

    def _trained_category(self, category: Tensor) -> Tensor:
        """Indices into the training categories, of indices into the data module's."""
        names = [self._data.category_names[c] for c in category.tolist()]
        unknown = sorted(set(names) - set(self.detector.categories))
        if unknown:
            raise InputError(
                f"{type(self.detector).__name__} under protocol paper is told each cloud's category, and was not "
                f"trained on {unknown[0]}; leave it out of data.categories"
            )
        return torch.tensor([self.detector.categories.index(name) for name in names], device=category.device)

    @property
    def _trained_enough(self) -> bool:
        """Whether the trainer would let the training stop."""
        epochs = self.trainer.fit_loop.epoch_progress.current.processed  # pyright: ignore[reportAttributeAccessIssue]
        least = self.trainer.min_epochs or 0, self.trainer.min_steps or 0
        return epochs >= least[0] and self.trainer.global_step >= least[1]

    @property
    def _fitting(self) -> bool:
        return self.trainer.state.fn == TrainerFn.FITTING

    @property
    def _data(self) -> PointCloudDataModule:
        return cast(PointCloudDataModule, self.trainer.datamodule)  # pyright: ignore[reportAttributeAccessIssue]


def _larger(one: dict[str, int | None], other: dict[str, int | None]) -> dict[str, int | None]:
    """Of each kind of memory the larger; None where neither has it."""
    return {name: max((a for a in (one.get(name), other[name]) if a is not None), default=None) for name in other}


def _clock() -> float:
    """Seconds, in which no time was spared: work counts as it would without what lay on disk. A GPU ends it first."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() + spared_seconds()
