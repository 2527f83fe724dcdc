"""Clouds for the tests of the baselines: two parts without symmetry, and a bump on them."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly3d.types import PointCloudBatch


def bracket(n: int, seed: int) -> Tensor:
    """The surface of an L of three boxes, 6 x 4 x 2."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[6.0, 2, 1, 0, 0, 0], [1.5, 2, 4, 0, 0, 1], [1, 4, 1, 5, 0, 0]])
    sizes, corners = boxes[:, :3], boxes[:, 3:]
    area = sizes[:, 0] * sizes[:, 1] + sizes[:, 1] * sizes[:, 2] + sizes[:, 2] * sizes[:, 0]
    which = torch.multinomial(area, n, replacement=True, generator=generator)
    return corners[which] + _on_box(sizes[which], generator)


def plate(n: int, seed: int) -> Tensor:
    """The surface of a flat box with a step."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[7.0, 5, 0.6, 0, 0, 0], [2, 3, 1.5, 0.5, 0.5, 0.6]])
    sizes, corners = boxes[:, :3], boxes[:, 3:]
    which = torch.multinomial(torch.tensor([0.75, 0.25]), n, replacement=True, generator=generator)
    return corners[which] + _on_box(sizes[which], generator)


def _on_box(size: Tensor, generator: torch.Generator) -> Tensor:
    points = torch.rand(len(size), 3, generator=generator)
    faces = torch.stack([size[:, 1] * size[:, 2], size[:, 0] * size[:, 2], size[:, 0] * size[:, 1]], 1)
    axis = torch.multinomial(faces, 1, generator=generator)
    points.scatter_(1, axis, torch.randint(2, (len(size), 1), generator=generator).float())
    return points * size


def bumped(
    xyz: Tensor, at: tuple[float, float, float], height: float = 0.5, width: float = 0.45
) -> tuple[Tensor, Tensor]:
    """The cloud with a bump upwards, and which points it moved noticeably."""
    top = xyz[:, 2] > at[2] - 0.05
    lift = height * torch.exp(-0.5 * ((xyz - torch.tensor(at)).norm(dim=1) / width) ** 2) * top
    moved = xyz.clone()
    moved[:, 2] += lift
    return moved, lift > 0.2 * height


def batch(clouds: list[Tensor], categories: list[int] | None = None) -> PointCloudBatch:
    """Centred, as the data modules deliver them."""
    centred = [cloud - cloud.mean(0) for cloud in clouds]
    return PointCloudBatch.pack(centred, [f"cloud{i}" for i in range(len(clouds))], categories)


def training() -> PointCloudBatch:
    """Two normal clouds of each category."""
    clouds = [bracket(2500, 0), bracket(2500, 1), plate(2500, 2), plate(2500, 3)]
    return batch(clouds, [0, 0, 1, 1])
