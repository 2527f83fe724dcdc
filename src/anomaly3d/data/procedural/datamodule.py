"""The endless stream of procedural clouds, an epoch at a time."""

from __future__ import annotations

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from anomaly3d.data.procedural.stream import ProceduralClouds

VALIDATION = 2**31
"""The validation clouds are this far down the stream, where no training gets."""


class ProceduralDataModule(LightningDataModule):
    """Epochs of `clouds_per_epoch` clouds, one after the other from the stream: no cloud is seen twice.

    Args:
        points: points per cloud.
        clouds_per_epoch: of all devices together.
        batch_size: clouds per device and step.
        val_clouds: for the validation loss.
        num_workers: processes that make clouds; 0 makes them in the main one.
        seed: of the stream.
    """

    def __init__(
        self,
        points: int = 8192,
        clouds_per_epoch: int = 4096,
        batch_size: int = 32,
        val_clouds: int = 96,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.stream = ProceduralClouds(points=points, seed=seed)
        self.clouds_per_epoch = clouds_per_epoch
        self.batch_size = batch_size
        self.val_clouds = val_clouds
        self.num_workers = num_workers
        # What decides the training clouds of every step.
        self.settings = {
            "points": points,
            "clouds_per_epoch": clouds_per_epoch,
            "batch_size": batch_size,
            "seed of the stream": seed,
        }

    def train_dataloader(self) -> DataLoader[Tensor]:
        """This epoch's clouds; the trainer asks anew every epoch."""
        assert self.trainer is not None
        first = self.trainer.current_epoch * self.clouds_per_epoch
        return self._loader(range(first, first + self.clouds_per_epoch), drop_last=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Always the same clouds."""
        return self._loader(range(VALIDATION, VALIDATION + self.val_clouds))

    def _loader(self, items: range, drop_last: bool = False) -> DataLoader[Tensor]:
        # In order, not shuffled: neighbours in the stream are views of one shape, which one worker makes once.
        return DataLoader(
            Subset(self.stream, items), self.batch_size, num_workers=self.num_workers, drop_last=drop_last
        )
