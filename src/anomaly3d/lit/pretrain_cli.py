"""`anomaly3d pretrain`: the backbone's masked pre-training, from a recipe to a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger

from anomaly3d.data.procedural.datamodule import ProceduralDataModule
from anomaly3d.errors import InputError
from anomaly3d.lit.checkpoints import check_checkpoint, write_whole_checkpoints
from anomaly3d.lit.cli import quieten
from anomaly3d.lit.pretraining import EncoderFile, PretrainingModule, Reconstructions


class PretrainingCLI(LightningCLI):
    """LightningCLI for `PretrainingModule`; `--output` is the folder of everything it writes.

    Started again with the same output, it goes on after the last finished epoch.
    """

    def __init__(self, args: list[str]) -> None:
        quieten()
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            PretrainingModule,
            ProceduralDataModule,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "anomaly3d pretrain", "exit_on_error": False},
            trainer_defaults={"reload_dataloaders_every_n_epochs": 1},
            args=args,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The output folder, on which logger and checkpoints depend; the one seed of weights, draws and clouds."""
        parser.add_argument("--output", type=Path, default=Path("runs/pretrain"), help="folder of all results")
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.seed", compute_fn=_number)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Everything that is written goes into the output folder; a log folder per attempt.

        Loggers and callbacks of the configuration are there besides.
        """
        given = self.config_init["trainer"]
        loggers = given["logger"] if isinstance(given["logger"], list) else [given["logger"]]
        output = Path(self.config["output"])
        last = ModelCheckpoint(
            output / "checkpoints",
            filename="last",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        callbacks = [EncoderFile(output), Reconstructions(output), last, *(given["callbacks"] or [])]
        loggers = [CSVLogger(output, "log"), *(logger for logger in loggers if isinstance(logger, Logger))]
        trainer = super().instantiate_trainer(callbacks=callbacks, logger=loggers, **kwargs)
        write_whole_checkpoints(trainer)
        return trainer


def _number(seed: int | bool) -> int:
    if isinstance(seed, bool):
        raise InputError("seed_everything: the stream of clouds needs a number")
    return seed


def pretrain(args: list[str]) -> None:
    """Run `anomaly3d pretrain`, from the start or from where it was stopped."""
    cli = PretrainingCLI(args)
    output = Path(cli.config["output"])
    last = output / "checkpoints" / "last.ckpt"
    if last.exists():
        check_checkpoint(last)
        print(f"going on from {last}; another --output starts anew")
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=last if last.exists() else None)
    print(f"written: {output}/point_mae_{cli.model.size}.safetensors, for --model.detector.init_args.backbone_weights")
