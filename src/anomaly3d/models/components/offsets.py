"""How far a placed cloud lies from the training clouds, measured by how far these lie from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import check_range
from anomaly3d.models.components.memory import nearest, pack, unpack
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.sized_buffers import make_room_first, resize_buffers
from anomaly3d.ops.grouping import interpolate
from anomaly3d.ops.stages import stage
from anomaly3d.ops.voxel import voxel_filter

_FLOOR = 0.1
"""Smallest distance that is expected anywhere, in edges of the voxel filter: training clouds may be copies [ours]."""


class TemplateOffsets(nn.Module):
    """Distances to the surface of a category's training clouds in units of what is normal at the place [ours].

    A patch's token is taken about the patch's own centre: a surface that is displaced as a whole, by a wide bulge or a
    bend, looks normal to it. Its distance from the templates does not. What distance is normal varies from place to
    place, with the density, the noise and the freedom of the category; it is that of each training cloud from the
    others, or, where a category has one, of its points from each other. One cloud more than the others makes surfaces
    denser: by sampling alone distances to k clouds are `sqrt((k - 1) / k)` of those to k - 1, and are expected to be.

    Needs clouds in one frame.

    Args:
        edge: of the voxel filter before distances are taken, in units of the template's radius.
        neighbours: points over which distances, and expected ones, are averaged, as template distance does.
    """

    rows: Float[Tensor, "N 4"] | None  # place, and the distance that is expected there
    offsets: Int[Tensor, "C+1"] | None
    here: Tensor

    def __init__(self, edge: float = 0.01, neighbours: int = 16) -> None:
        super().__init__()
        check_range(1e-4, 1, offset_edge=edge)
        check_range(1, inf, offset_neighbours=neighbours)
        self.edge = edge
        self.neighbours = neighbours
        self.average = PointScoring(neighbours)
        self.register_buffer("rows", None)
        self.register_buffer("offsets", None)
        self.register_buffer("here", torch.zeros(()), persistent=False)  # knows the device while the others are empty
        self.register_load_state_dict_pre_hook(make_room_first)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Buffers of the size that they have in `state`."""
        resize_buffers(self, state, self.here.device)

    def thinned(self, cloud: Float[Tensor, "N 3"], radius: float) -> Float[Tensor, "n 3"]:
        """A placed cloud, in an order that does not depend on its file's, as distances are taken of it."""
        return voxel_filter(cloud, self.edge * radius)

    def keep(self, groups: Sequence[Sequence[Float[Tensor, "n 3"]]], radii: Sequence[float]) -> None:
        """The thinned training clouds of each category, at least one, and the radius of each template."""
        self.rows, self.offsets = pack([self._rows(*group) for group in zip(groups, radii, strict=True)])

    @stage("offsets")
    def forward(self, cloud: Float[Tensor, "N 3"], category: int, radius: float) -> Float[Tensor, " N"]:
        """Of every point of a placed cloud; about 1 where it lies as training clouds do.

        Raises:
            ValueError: no training clouds were kept.
        """
        if self.rows is None or self.offsets is None:
            raise ValueError("keep the training clouds first")
        rows = unpack(self.rows, self.offsets)[category]
        seen = self.thinned(cloud, radius)
        distance, index = nearest(seen, rows[:, :3].contiguous(), min(self.neighbours, len(rows)))
        return interpolate(self.average.points(distance[:, 0], seen, seen) / rows[index, 3].mean(1), seen, cloud)

    def _rows(self, clouds: Sequence[Float[Tensor, "n 3"]], radius: float) -> Float[Tensor, "N 4"]:
        count, rows = len(clouds), []
        for i, cloud in enumerate(clouds):
            if count == 1:
                distance = nearest(cloud, cloud, min(2, len(cloud)))[0][:, -1]
            else:
                others = torch.cat([other for j, other in enumerate(clouds) if j != i])
                distance = nearest(cloud, others)[0][:, 0] * ((count - 1) / count) ** 0.5
            expected = self.average.points(distance, cloud, cloud).clamp(min=_FLOOR * self.edge * radius)
            rows.append(torch.cat([cloud, expected[:, None]], 1))
        return torch.cat(rows)


def make_offsets(share: float, edge: float, neighbours: int) -> TemplateOffsets | None:
    """None where they have no share in a score.

    Raises:
        InputError: a setting is out of range.
    """
    check_range(0, 1, offset_share=share)
    offsets = TemplateOffsets(edge, neighbours)
    return offsets if share else None
