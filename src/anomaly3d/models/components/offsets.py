"""How far a placed cloud lies from the training clouds, measured by how far these lie from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import InputError
from anomaly3d.models.components.memory import nearest, pack, unpack
from anomaly3d.models.components.sized_buffers import make_room_first, resize_buffers

_NEIGHBOURS = 16
"""Points over which a distance is averaged, as template distance does, and expected ones likewise [ours]."""


class TemplateOffsets(nn.Module):
    """Distances to the surface of a category's training clouds in units of what is normal at the place [ours].

    A patch's token is taken about the patch's own centre: a surface that is displaced as a whole, by a wide bulge or a
    bend, looks normal to it. Its distance from the templates does not. What distance is normal varies from place to
    place, with the density, the noise and the freedom of the category; it is that of each training cloud from the
    others, or, where a category has one, of its points from each other. Needs clouds in one frame.
    """

    rows: Float[Tensor, "N 4"] | None  # place, and distance of the training cloud there from the others
    offsets: Int[Tensor, "C+1"] | None
    here: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", None)
        self.register_buffer("offsets", None)
        self.register_buffer("here", torch.zeros(()), persistent=False)  # knows the device while the others are empty
        self.register_load_state_dict_pre_hook(make_room_first)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Buffers of the size that they have in `state`."""
        resize_buffers(self, state, self.here.device)

    def keep(self, groups: Sequence[Sequence[Float[Tensor, "n 3"]]]) -> None:
        """The placed training clouds of each category, at least one."""
        self.rows, self.offsets = pack([torch.cat(_with_distances(clouds)) for clouds in groups])

    def forward(self, cloud: Float[Tensor, "N 3"], category: int) -> Float[Tensor, " N"]:
        """Of every point of a placed cloud; about 1 where it lies as training clouds do.

        Raises:
            InputError: no training clouds were kept.
        """
        if self.rows is None or self.offsets is None:
            raise InputError(
                "offset_share: the detector has kept no training clouds to measure from; train it with one"
            )
        rows = unpack(self.rows, self.offsets)[category]
        distance, index = nearest(cloud, rows[:, :3].contiguous(), min(_NEIGHBOURS, len(rows)))
        expected = rows[index, 3].mean(1)
        return _averaged(distance[:, 0], cloud) / expected.clamp(min=torch.finfo(expected.dtype).tiny)


def _with_distances(clouds: Sequence[Float[Tensor, "n 3"]]) -> list[Float[Tensor, "n 4"]]:
    """Each cloud's points with their averaged distances from the other clouds."""
    if len(clouds) == 1:
        distances = [nearest(clouds[0], clouds[0], min(2, len(clouds[0])))[0][:, -1]]
    else:
        distances = [nearest(c, torch.cat([o for o in clouds if o is not c]))[0][:, 0] for c in clouds]
    found = zip(clouds, distances, strict=True)
    return [torch.cat([cloud, _averaged(distance, cloud)[:, None]], 1) for cloud, distance in found]


def _averaged(values: Float[Tensor, " N"], at: Float[Tensor, "N 3"]) -> Float[Tensor, " N"]:
    """Mean over the nearest points, itself included."""
    return values[nearest(at, at, min(_NEIGHBOURS, len(at)))[1]].mean(1)
