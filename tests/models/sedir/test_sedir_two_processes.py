"""SeDiR trained by two processes on the CPU, as DDP trains it on GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_sedir import ball, box, make_detector
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PointCloudBatch

SIZE, STEPS = 3, 4  # fewer entries than clouds: the buffer overflows


class Loss(nn.Module):
    """What DDP wraps: the loss as a forward pass."""

    def __init__(self, detector: SeDiR) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: PointCloudBatch) -> Tensor:
        return self.detector.loss(batch)["loss"]


def cloud_of(rank: int, step: int) -> PointCloudBatch:
    """One cloud a rank; the ranks' categories differ at some steps and agree at others."""
    category = (rank * (step % 2) + step // 2) % 2
    xyz = (ball if category == 0 else box)(300 + 10 * step, 2 * step + rank)
    return PointCloudBatch.pack([xyz], [f"{step}/{rank}"], category=[category])


def fresh() -> tuple[SeDiR, torch.optim.AdamW]:
    torch.manual_seed(0)
    detector = make_detector(buffer_size=SIZE).train()
    return detector, torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)


def take(detector: SeDiR, optimizer: torch.optim.Optimizer, rank: int, steps: range) -> list[tuple[Tensor, Tensor]]:
    """Train for some steps; what this rank had to push at each."""
    model = DistributedDataParallel(Loss(detector))
    buffer, pushed = detector.contrast.buffer, []
    push = buffer.push

    def recording(embedding: Tensor, category: Tensor) -> None:
        pushed.append((embedding.detach().clone(), category.clone()))
        push(embedding, category)

    buffer.push = recording  # pyright: ignore[reportAttributeAccessIssue]
    for step in steps:
        torch.manual_seed(100 * step + rank)  # of the jitter
        optimizer.zero_grad()
        loss = model(cloud_of(rank, step))
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    buffer.push = push  # pyright: ignore[reportAttributeAccessIssue]
    return pushed


def _rank(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    detector, optimizer = fresh()
    pushed = take(detector, optimizer, rank, range(STEPS // 2))
    if rank == 0:
        torch.save((detector.state_dict(), optimizer.state_dict()), f"{out}/half.pt")
    dist.barrier()
    pushed += take(detector, optimizer, rank, range(STEPS // 2, STEPS))

    resumed, its_optimizer = fresh()
    state, of_optimizer = torch.load(f"{out}/half.pt", weights_only=True)  # rank zero's, on both
    resumed.load_state_dict(state)
    its_optimizer.load_state_dict(of_optimizer)
    take(resumed, its_optimizer, rank, range(STEPS // 2, STEPS))
    torch.save({"pushed": pushed, "whole": detector.state_dict(), "resumed": resumed.state_dict()}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_buffer_is_what_both_processes_gathered_and_a_resumed_fit_goes_on_bit_for_bit(tmp_path: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    entries = [ranks[rank]["pushed"][step] for step in range(STEPS) for rank in range(2)]
    assert len({round(float(z.sum()), 6) for z, _ in entries}) == 2 * STEPS  # no two alike
    for rank in ranks:
        state = {name.removeprefix("contrast.buffer."): value for name, value in rank["whole"].items()}
        order = state["stamp"].argsort()
        assert state["stamp"][order].tolist() == list(range(2 * STEPS - SIZE, 2 * STEPS))
        assert torch.equal(state["embedding"][order], torch.cat([z for z, _ in entries[-SIZE:]]))
        assert torch.equal(state["category"][order], torch.cat([category for _, category in entries[-SIZE:]]))
        assert rank["whole"].keys() == rank["resumed"].keys() == ranks[0]["whole"].keys()
        for name, value in rank["whole"].items():
            assert torch.equal(value, rank["resumed"][name]), name
            assert torch.equal(value, ranks[0]["whole"][name]), name
