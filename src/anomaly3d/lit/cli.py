"""LightningCLI on OmegaConf: recipes in YAML, every value open to the command line."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from anomaly3d.data.datamodule import PointCloudDataModule
from anomaly3d.errors import InputError, reason
from anomaly3d.lit.checkpoints import check_checkpoint, write_whole_checkpoints
from anomaly3d.lit.heatmaps import HeatMaps
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.lit.prediction_files import PredictionFiles
from anomaly3d.lit.random_state import RandomState
from anomaly3d.lit.result_table import ResultTable
from anomaly3d.lit.run_folder import SaveConfig, check_loggers, remove_empty, with_folder
from anomaly3d.models.backbones import weights


class AnomalyCLI(LightningCLI):
    """LightningCLI for `AnomalyModule` and our data modules.

    `omegaconf+` resolves `${...}` once, after all files and the command line are merged, so that an override is
    followed by whatever refers to it (`omegaconf` resolves per file and leaves such users stale).
    """

    def __init__(self, args: list[str], callbacks: Sequence[Callback] = (), **kwargs: Any) -> None:
        quieten()
        name_weights()
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            AnomalyModule,
            PointCloudDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # the schedule is the module's: its settings are plain config keys
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},  # of a run that was given its `version`, to go on in its folder
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "anomaly3d", "exit_on_error": False},
            trainer_defaults={"callbacks": [ResultTable(), PredictionFiles(), HeatMaps(), RandomState(), *callbacks]},
            args=args,
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The checkpoint of the last epoch, and defaults that every recipe shares."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                # The protocol scores the last checkpoint; one file, replaced as a whole after every epoch.
                "checkpoint.filename": "last",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": True,
                "trainer.num_sanity_val_steps": 0,
                "trainer.log_every_n_steps": 10,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Look at checkpoint and loggers first: a mistake there should not cost the time to read the data."""
        super().parse_arguments(parser, args)
        verb = self.config.get("subcommand")
        config = self.config[verb] if verb else self.config
        if verb in ("test", "validate"):
            config["verbose"] = False  # our table says it better
        path = config.get("ckpt_path")
        if path is not None:
            check_checkpoint(Path(path))
        elif verb in ("test", "validate", "predict"):
            raise InputError(
                f"{verb}: give the checkpoint, --ckpt_path FILE; `anomaly3d fit` writes one "
                "(<log folder>/checkpoints/last.ckpt), and without it the weights were those of no training"
            )
        check_loggers(config["trainer"])
        saved = config.get("checkpoint") or {}
        for setting in ("every_n_train_steps", "train_time_interval"):
            if verb == "fit" and saved.get(setting) is not None:
                raise InputError(
                    f"checkpoint.{setting}: a checkpoint within an epoch lacks what the detector gathers over it "
                    "(templates, memory banks, expected errors), and nothing goes on from it as it was; leave it out: "
                    "there is one after every epoch"
                )

    def _run_subcommand(self, subcommand: str) -> None:
        """A run that is refused before it has written anything leaves no folder."""
        try:
            super()._run_subcommand(subcommand)
        except InputError:
            remove_empty(self.trainer.loggers)
            raise

    def after_validate(self) -> None:
        """There is a result."""
        cast(AnomalyModule, self.model).require_result("validate")

    def after_test(self) -> None:
        """There is a result."""
        cast(AnomalyModule, self.model).require_result("test")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose first logger has a folder for this run alone."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            advice = "" if torch.cuda.is_available() else " (without a GPU take --trainer configs/trainer/cpu.yaml)"
            raise InputError(f"trainer: {reason(error)}{advice if 'gpu' in str(error).lower() else ''}") from error
        trainer.loggers = with_folder(trainer.loggers)
        write_whole_checkpoints(trainer)
        return trainer


class _ToStandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def name_weights() -> None:
    """Let every backbone that is built say on standard error which weights it has."""
    log = logging.getLogger(weights.__name__)
    log.setLevel(logging.INFO)
    log.handlers = [_ToStandardError()]


class DataCLI(AnomalyCLI):
    """Builds only the data module of a recipe: to ask which categories there are."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(args, run=False)

    def instantiate_classes(self) -> None:
        """The data module alone; its arguments are plain values."""
        data = self.config["data"]
        module, _, name = data["class_path"].rpartition(".")
        self.datamodule = getattr(import_module(module), name)(**vars(data["init_args"]))


def run(args: list[str]) -> None:
    """Run one of Lightning's verbs, `args[0]`."""
    AnomalyCLI(args)


def quieten() -> None:
    """Silence what no user can act on; errors and our own warnings stay."""
    for name in ("pytorch.utilities.rank_zero", "pytorch.accelerators.cuda", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    for message in (
        ".*args parameter is intended to run from within Python.*",
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*module\\(s\\) in eval mode.*",  # the frozen backbone's
        "The dirpath has changed.*",  # a test run has a folder of its own
        ".*treespec, LeafSpec.*",
        ".*sync_dist=True.*",  # the evaluator's results are of all ranks already
        "Initializing zero-element tensors.*",
    ):
        warnings.filterwarnings("ignore", message=message)
