"""Orders that are not learned, to put the sorter beside: the paper's ablation."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from anomaly3d.models.mamba3dad.gsas import Ordering, SortedTokens

Fixed = Literal["off", "random", "coordinate"]


class FixedOrder(nn.Module):
    """All T = L * M tokens unmixed, each once: a permutation takes the place of the plan.

    Args:
        kind: `off`, as the patches come, layer after layer; `random`, the same random order for every cloud of as many
            tokens; `coordinate`, by x, then y, then z of the patch.
    """

    def __init__(self, kind: Fixed) -> None:
        super().__init__()
        self.kind = kind

    def forward(
        self, tokens: Float[Tensor, "B L M D"], centres: Float[Tensor, "B M 3"], ordering: Ordering = "sort"
    ) -> SortedTokens:
        """Sorted features and coordinates; the ordering makes no difference."""
        order = self.order(repeat(centres, "b m c -> b (l m) c", l=tokens.shape[1]))
        features = rearrange(tokens.float(), "b l m d -> b (l m) d").take_along_dim(order[..., None], dim=1)
        coordinates = centres.take_along_dim((order % centres.shape[1])[..., None], dim=1)
        plan = one_hot(order, order.shape[1]).transpose(1, 2).to(features)
        return SortedTokens(features, coordinates, plan, plan)

    def order(self, places: Float[Tensor, "B T 3"]) -> Int[Tensor, "B T"]:
        """The token that stands at each place."""
        count = places.shape[1]
        if self.kind == "coordinate":
            # From the least significant coordinate to the most, each sort keeping the order of the last.
            order = torch.arange(count, device=places.device).expand(len(places), -1)
            for axis in (2, 1, 0):
                order = order.take_along_dim(places[..., axis].take_along_dim(order, 1).argsort(dim=1, stable=True), 1)
            return order
        order = torch.arange(count)
        if self.kind == "random":
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        return order.to(places.device).expand(len(places), -1)
