"""Every run has a folder of its own, with its configuration in it and, where W&B is used, there too."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from anomaly3d.errors import InputError


def with_folder(loggers: list[Logger]) -> list[Logger]:
    """The loggers, with one first that has a folder per run, which this run claims.

    The first logger's folder is the run's: `config.yaml`, checkpoints and results go there. Only a CSVLogger's is sure
    to be no other run's. Where the first is another, one is put before it: in the same `save_dir`, named as the run
    that W&B is to show, or `csv`. None stay none, as does what `fast_dev_run` takes.
    """
    if not loggers or isinstance(loggers[0], DummyLogger):
        return loggers
    first = loggers[0]
    if not isinstance(first, CSVLogger):
        folder, name = first.save_dir or ".", "csv"
        if isinstance(first, WandbLogger):
            settings: dict[str, Any] = first._wandb_init
            name = settings["name"] or settings["project"]
        first = CSVLogger("runs" if folder == "." else folder, name)
        loggers = [first, *loggers]
    claim(first)
    return loggers


@rank_zero_only
def claim(logger: CSVLogger) -> None:
    """Make the logger's folder, the next that no other run has; a `version` that was asked for is taken as it is.

    Lightning looks for the next number and makes its folder only later: two runs that start together would share it.
    """
    while logger._version is None:
        version = logger._get_next_version()
        try:
            (Path(logger.root_dir) / f"version_{version}").mkdir(parents=True)
        except FileExistsError:
            continue
        logger._version = version


def remove_empty(loggers: list[Logger]) -> None:
    """Remove the folder that a run claimed if there is nothing in it, and the one around it likewise."""
    if loggers and isinstance(loggers[0], CSVLogger):
        with suppress(OSError):
            for folder in (loggers[0].log_dir, loggers[0].root_dir):
                Path(folder).rmdir()


def check_loggers(config: Any) -> None:
    """Raise InputError for a configuration (of `trainer`) that asks W&B for what it cannot do here."""
    found = config.get("logger")
    loggers = found if isinstance(found, list) else [found]
    for logger in (entry for entry in loggers if getattr(entry, "class_path", "").endswith("WandbLogger")):
        if find_spec("wandb") is None:
            raise InputError("trainer.logger: W&B is not installed; pip install 'anomaly3d[wandb]'")
        if logger.init_args.offline and logger.init_args.log_model:
            raise InputError("trainer.logger: W&B takes no checkpoints offline; leave out `log_model` or `offline`")


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration, every default included, to the run's folder and to W&B."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Without a logger there is no folder of the run's own, and nothing is written."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """To W&B, as `wandb.config`."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(config)
