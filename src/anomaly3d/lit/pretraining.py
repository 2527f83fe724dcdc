"""Masked pre-training of the backbone as a LightningModule, and what it leaves behind."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim import AdamW

from anomaly3d.errors import InputError
from anomaly3d.lit.accumulation import accumulation_weight
from anomaly3d.lit.schedule import with_schedule
from anomaly3d.models.backbones.mae import MaskedAutoencoder, MaskedReconstruction, random_mask
from anomaly3d.models.backbones.point_mae import Size
from anomaly3d.models.backbones.weights import save_encoder
from anomaly3d.ops.fps import farthest_point_sampling
from anomaly3d.ops.grouping import gather_points
from anomaly3d.ops.knn import knn


class PretrainingModule(L.LightningModule):
    """Point-MAE's pre-training on clouds (B, P, 3) in the unit sphere.

    Every step draws a size of patch and a number of points for its whole batch, so that the backbone knows the
    neighbourhoods that detectors feed it [ours]; with one size and all points it is the published recipe.
    A step's random numbers depend on the seed, the step and the rank alone: a resumed run takes the same steps.

    Args:
        size: architecture of the encoder.
        decoder_depth: blocks of the decoder [published: 4].
        drop_path: largest rate of stochastic depth [published: 0.1].
        groups: patches per cloud [published: 64].
        patch_sizes: points per patch, each with the share of steps that use it [published: 32 always].
        min_points: least number of points of a cloud; each step draws one, log-uniformly, between it (or what its patch
            size needs: a patch has at most `max_share` of the points) and all [published: always 1024].
        max_share: largest patch as a share of its cloud.
        mask_ratio: share of the patches that the encoder does not see [published: 0.6].
        scale: augmentation: each axis is multiplied by a factor from this range [published: 2/3 to 3/2].
        translate: augmentation: largest shift along each axis [published: 0.2].
        lr: peak learning rate of AdamW [published: 1e-3 for batches of 128].
        weight_decay: on matrices only, as published [published: 0.05].
        warmup_epochs: linear warm-up, before the cosine down to zero [published: 10 of 300].
        clip_gradient: largest norm of the gradient; None for no limit [published: none].
        norm_momentum: share of a step in the statistics of BatchNorm [published: 0.1]. Patches of several sizes need a
            smaller one: what stays behind should be of thousands of patches of every size.
        seed: of all draws.
    """

    def __init__(
        self,
        size: Size = "base",
        decoder_depth: int = 4,
        drop_path: float = 0.1,
        groups: int = 64,
        patch_sizes: Mapping[int, float] | None = None,
        min_points: int = 1024,
        max_share: float = 0.08,
        mask_ratio: float = 0.6,
        scale: tuple[float, float] = (2 / 3, 3 / 2),
        translate: float = 0.2,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_epochs: float = 10,
        clip_gradient: float | None = None,
        norm_momentum: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.patch_sizes = dict(patch_sizes or {32: 1.0})
        if min(self.patch_sizes) < 32 or min(self.patch_sizes.values()) < 0 or sum(self.patch_sizes.values()) <= 0:
            raise InputError(f"patch_sizes: {self.patch_sizes}; sizes start at 32 points, shares at 0")
        if not 0 < mask_ratio < 1 or int(mask_ratio * groups) in (0, groups):
            raise InputError(f"mask_ratio: {mask_ratio} of {groups} patches; some must be masked and some visible")
        self.settings = {
            "size": size,
            "decoder_depth": decoder_depth,
            "groups": groups,
            "patch_sizes": {str(k): v for k, v in self.patch_sizes.items()},
            "min_points": min_points,
            "max_share": max_share,
            "mask_ratio": mask_ratio,
            "scale": list(scale),
            "translate": translate,
            "drop_path": drop_path,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup_epochs": warmup_epochs,
            "clip_gradient": clip_gradient,
            "norm_momentum": norm_momentum,
            "seed": seed,
        }
        torch.manual_seed(seed)
        self.autoencoder = MaskedAutoencoder(size, decoder_depth, drop_path)
        for norm in (m for m in self.autoencoder.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.momentum = norm_momentum
        self.size: Size = size
        self.groups = groups
        self.min_points = min_points
        self.max_share = max_share
        self.mask_ratio = mask_ratio
        self.scale = scale
        self.translate = translate
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.clip_gradient = clip_gradient
        self.seed = seed
        self.last_validation: MaskedReconstruction | None = None

    def configure_optimizers(self) -> Any:
        """AdamW, weight decay on matrices only; warm-up and cosine, stepped every batch."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim == 2]
        rest = [p for p in parameters if p.ndim != 2]
        optimizer = AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=self.lr
        )
        return with_schedule(optimizer, self.trainer, self.warmup_epochs, start=1e-3)

    def training_step(self, clouds: Float[Tensor, "B P 3"], batch_idx: int) -> Tensor:
        """Chamfer-L2 of the masked patches."""
        within = batch_idx % self.trainer.accumulate_grad_batches  # batches of one step draw each their own
        torch.manual_seed(hash((self.seed, self.global_step, self.global_rank, *([within] if within else []))))
        sizes, shares = zip(*sorted(self.patch_sizes.items()), strict=True)
        size = sizes[int(torch.multinomial(torch.tensor(shares), 1))]
        low, high = self.point_range(size, clouds.shape[1])
        points = round(low * (high / low) ** torch.rand(()).item())
        clouds = clouds[:, :points]  # a cloud's points come in random order
        lowest, highest = self.scale
        stretch = lowest + (highest - lowest) * torch.rand(len(clouds), 1, 3, device=clouds.device)
        shift = self.translate * (2 * torch.rand(len(clouds), 1, 3, device=clouds.device) - 1)
        loss = self.reconstruct(clouds * stretch + shift, size).loss()
        self.log("train/chamfer", loss.detach(), prog_bar=True, batch_size=len(clouds))
        self.log(f"train/chamfer_{size}", loss.detach(), batch_size=len(clouds))
        return accumulation_weight(self.trainer, batch_idx) * loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradient."""
        if self.clip_gradient is not None:
            self.clip_gradients(optimizer, self.clip_gradient, "norm")

    def validation_step(self, clouds: Float[Tensor, "B P 3"], batch_idx: int) -> None:
        """The same on clouds of a stream of its own, patches of every size in turn, always the same draws."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_idx)
            sizes = sorted(self.patch_sizes)
            size = sizes[batch_idx % len(sizes)]
            found = self.reconstruct(clouds[:, : sum(self.point_range(size, clouds.shape[1])) // 2], size)
        if batch_idx == 0:
            self.last_validation = found
        self.log("val/chamfer", found.loss(), prog_bar=True, batch_size=len(clouds), sync_dist=True)

    def point_range(self, size: int, available: int) -> tuple[int, int]:
        """Least and greatest number of points for patches of `size`."""
        needed = max(self.min_points, round(size / self.max_share))
        return min(needed, available), available

    def reconstruct(self, clouds: Float[Tensor, "B P 3"], size: int) -> MaskedReconstruction:
        """Cut patches from random starts on, mask some, reconstruct them."""
        start = torch.randint(clouds.shape[1], (len(clouds),), device=clouds.device)
        centres = gather_points(clouds, farthest_point_sampling(clouds, self.groups, start))
        _, index = knn(centres, clouds, size)
        points = gather_points(clouds, index) - centres[:, :, None]
        masked = random_mask(len(clouds), self.groups, self.mask_ratio, clouds.device)
        return self.autoencoder(points, centres, masked)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down what is being trained."""
        checkpoint["anomaly3d"] = {"pretraining": self._decisive()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another training."""
        before = checkpoint.get("anomaly3d", {}).get("pretraining")
        if before is None:
            raise InputError(f"{self.trainer.ckpt_path}: not of a pre-training; give this one another --output")
        # Checkpoints of older versions hold fewer settings; this one could not be chosen then.
        before = {"norm_momentum": 0.02, **before}
        other = [f"{k}={before[k]} instead of {v}" for k, v in self._decisive().items() if before.get(k, v) != v]
        if other:
            raise InputError(
                f"{self.trainer.ckpt_path}: of a pre-training with {', '.join(other)}; give the former values, or this "
                "one another --output"
            )

    def _decisive(self) -> dict[str, Any]:
        """All that a resumed training must have as before; the schedule, too, follows from the number of epochs."""
        clouds: dict[str, Any] = self.trainer.datamodule.settings  # pyright: ignore[reportAttributeAccessIssue]
        of_trainer = {
            "max_epochs": self.trainer.max_epochs,
            "max_steps": self.trainer.max_steps,
            "limit_train_batches": self.trainer.limit_train_batches,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "precision": self.trainer.precision,
            "number of devices": self.trainer.world_size,
        }
        return {**self.settings, **clouds, **of_trainer}


class EncoderFile(Callback):
    """Writes the encoder after every epoch as `<folder>/point_mae_<size>.safetensors`, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export; a run that is stopped leaves a backbone that can be used."""
        assert isinstance(pl_module, PretrainingModule)
        if not trainer.is_global_zero:
            return
        save_encoder(
            pl_module.autoencoder.MAE_encoder,
            self.folder / f"point_mae_{pl_module.size}.safetensors",
            {
                "epochs": str(trainer.current_epoch + 1),
                "of_epochs": str(trainer.max_epochs),
                "steps": str(trainer.global_step),
                "seed": str(pl_module.seed),
                "command": shlex.join(["anomaly3d", *sys.argv[1:]]),
            },
        )


class Reconstructions(Callback):
    """Draws a few reconstructions of validation clouds after every validation.

    `<folder>/reconstructions/epoch_0005.png` (the last one of an epoch), and to every `WandbLogger`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the first validation batch."""
        from anomaly3d.report.reconstructions import draw_reconstructions

        assert isinstance(pl_module, PretrainingModule)
        found = pl_module.last_validation
        if not trainer.is_global_zero or found is None or trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        picture = self.folder / "reconstructions" / f"epoch_{epoch:04d}.png"
        draw_reconstructions(found, picture, f"epoch {epoch}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/reconstructions", [str(picture)], step=trainer.global_step)
