"""Every process of a training draws numbers of its own, and draws on behind a stop; two processes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from command_line import TWO, checkpoint, run
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomaly3d.lit.random_state import RandomState


class Draws(L.LightningModule):
    """Draws one number per step and leaves its numbers and a checkpoint in the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = nn.Parameter(torch.rand(3))
        self.drawn: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.drawn.append(torch.rand((), dtype=torch.float64).item())
        return self.weight.sum()

    def on_train_end(self) -> None:
        torch.save(self.drawn, self.folder / f"{self.global_rank}.pt")
        self.trainer.save_checkpoint(self.folder / "end.ckpt")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def draws(
    folder: Path, processes: int, epochs: int, start: Path | None = None, callback: type[Callback] = RandomState
) -> list[list[float]]:
    """The numbers of each rank; four batches per epoch, shared out in order. The checkpoint is `<folder>/end.ckpt`."""
    folder.mkdir()
    L.seed_everything(0)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_spawn" if processes > 1 else "auto",
        max_epochs=epochs,
        callbacks=[callback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Draws(folder), DataLoader(torch.zeros(4, 1)), ckpt_path=start)  # pyright: ignore[reportArgumentType]
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


@pytest.mark.slow
def test_ranks_draw_apart_and_go_on_behind_a_stop(tmp_path: Path) -> None:
    one = draws(tmp_path / "one", 1, 3)
    assert one == draws(tmp_path / "one_without", 1, 3, callback=Callback)

    whole = draws(tmp_path / "whole", 2, 3)
    without = draws(tmp_path / "whole_without", 2, 3, callback=Callback)
    assert [len(numbers) for numbers in whole] == [6, 6]
    assert len(set(whole[0] + whole[1])) == 12
    assert without == [whole[0], whole[0]]

    first = draws(tmp_path / "first", 2, 1)
    rest = draws(tmp_path / "rest", 2, 3, tmp_path / "first" / "end.ckpt")
    assert [a + b for a, b in zip(first, rest, strict=True)] == whole

    # With fewer processes the first goes on with its own draws, with more the new ones start apart.
    fewer = draws(tmp_path / "fewer", 1, 3, tmp_path / "first" / "end.ckpt")
    assert fewer[0][0] == whole[0][2]
    old = tmp_path / "old.ckpt"  # as older versions wrote it: the first rank's state alone
    start = draws(tmp_path / "start", 1, 1)
    saved = torch.load(tmp_path / "start" / "end.ckpt", weights_only=True)
    (saved["callbacks"]["RandomState"],) = saved["callbacks"]["RandomState"]["ranks"]
    torch.save(saved, old)
    assert start[0] + draws(tmp_path / "on", 1, 3, old)[0] == one[0]
    more = draws(tmp_path / "more", 2, 3, old)
    assert more[0][0] == one[0][4]
    assert len(set(more[0] + more[1])) == len(more[0]) + len(more[1]) >= 4


@pytest.mark.slow
def test_two_processes_that_were_stopped_end_with_the_same_bits(parts: Path, tmp_path: Path) -> None:
    conf = Path(__file__).parents[1] / "conf" / "mamba3dad.yaml"  # draws noise at every step
    # No AUROC is better than another by 2: training stops at the second validation.
    stop = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/o_auroc")
    stop += ("--trainer.callbacks.mode=max", "--trainer.callbacks.min_delta=2", "--trainer.callbacks.patience=1")
    common = (*TWO, "--trainer.max_epochs=4")
    run(tmp_path, "fit", conf, parts, *common)
    run(tmp_path, "fit", conf, parts, *common, *stop)
    run(tmp_path, "fit", conf, parts, *common, "--ckpt_path", str(checkpoint(tmp_path, 1)))
    whole, stopped, resumed = (torch.load(checkpoint(tmp_path, i), weights_only=True) for i in range(3))
    assert [made["epoch"] for made in (whole, stopped, resumed)] == [3, 1, 3]
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert not all(torch.equal(value, stopped["state_dict"][name]) for name, value in whole["state_dict"].items())
    ranks = [made["callbacks"]["RandomState"]["ranks"] for made in (whole, resumed)]
    assert not torch.equal(ranks[0][0]["cpu"], ranks[0][1]["cpu"])
    assert all(torch.equal(a["cpu"], b["cpu"]) for a, b in zip(*ranks, strict=True))
