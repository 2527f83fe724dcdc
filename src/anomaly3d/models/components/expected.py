"""What error to expect where: that of the training clouds at the same place of their template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anomaly3d.models.components.memory import pack, unpack
from anomaly3d.models.components.seen import Seen, gather_seen
from anomaly3d.models.components.sized_buffers import make_room_first, resize_buffers
from anomaly3d.ops.knn import knn


class ExpectedErrors(nn.Module):
    """Errors that the patches of training clouds had, by category and place, at the last pass over them [ours].

    What a model has not learned of a shape it gets wrong on every cloud, defective or not: a score by itself says as
    much about the place as about the cloud. Measured by what training clouds have there, it is about the cloud. The
    errors are those of the training steps themselves, with their noise: they cost nothing, and a checkpoint always
    carries its own.

    Args:
        neighbours: patches of training clouds, the nearest to a place, over which is averaged.
    """

    rows: Float[Tensor, "N 4"] | None  # place and error
    offsets: Int[Tensor, "C+1"] | None
    here: Tensor

    def __init__(self, neighbours: int = 12) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("rows", None)
        self.register_buffer("offsets", None)
        self.register_buffer("here", torch.zeros(()), persistent=False)  # knows the device while the others are empty
        self._seen: dict[str, Seen] = {}
        self.register_load_state_dict_pre_hook(make_room_first)

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Buffers of the size that they have in `state`."""
        resize_buffers(self, state, self.here.device)

    def observe(
        self,
        names: Sequence[str],
        categories: Int[Tensor, " B"],
        centres: Float[Tensor, "B G 3"],
        errors: Float[Tensor, "B G"],
        normal: Bool[Tensor, "B G"] | None = None,
    ) -> None:
        """Remember the finite errors of training clouds, of the patches that are `normal` where some were corrupted."""
        rows = torch.cat([centres, errors.detach()[..., None]], dim=2).float()
        usable = rows.isfinite().all(dim=2) if normal is None else rows.isfinite().all(dim=2) & normal
        for b, (name, category) in enumerate(zip(names, categories.tolist(), strict=True)):
            self._seen[name] = Seen(name, category, rows[b][usable[b]])

    def finish_pass(self, categories: int) -> None:
        """Keep the errors of the pass; a category that was not in it keeps those it had. A collective call."""
        for theirs in gather_seen(self._seen, self.here.device):
            self._seen |= theirs
        if not self._seen:
            return
        fresh: list[list[Tensor]] = [[] for _ in range(categories)]
        for name in sorted(self._seen):
            fresh[self._seen[name].category].append(self._seen[name].kept)
        none = self.here.new_zeros(0, 4)
        before = [none] * categories if self.rows is None or self.offsets is None else unpack(self.rows, self.offsets)
        self.rows, self.offsets = pack([torch.cat(new) if new else old for new, old in zip(fresh, before, strict=True)])
        self._seen = {}

    def forward(self, centres: Float[Tensor, "B G 3"], categories: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """The mean error of the nearest patches; NaN before the first pass, or where a category has none."""
        expected = torch.full_like(centres[..., 0], torch.nan)
        if self.rows is None or self.offsets is None:
            return expected
        parts = unpack(self.rows, self.offsets)
        for b, category in enumerate(categories.tolist()):
            rows = parts[category][None]
            if rows.numel():
                _, index = knn(centres[b : b + 1], rows[..., :3].contiguous(), min(self.neighbours, rows.shape[1]))
                expected[b] = rows[0, index[0], 3].mean(dim=1)
        return expected
