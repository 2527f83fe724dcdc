"""GSAS, the sorter: a soft assignment of multi-layer tokens to an ordered row of learned slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.ops.grouping import gather_points
from anomaly3d.ops.knn import knn
from anomaly3d.ops.precision import no_autocast
from anomaly3d.ops.sinkhorn import sinkhorn


class SortedTokens(NamedTuple):
    """What the sorter hands on; token t = l * M + m is patch m at layer l."""

    features: Float[Tensor, "B S D"]
    coordinates: Float[Tensor, "B S 3"]
    plan: Float[Tensor, "B T S"]  # columns sum to 1, rows to S / T


class GSAS(nn.Module):
    """Sorts T = L * M tokens into S slots by entropic transport.

    A token's descriptor is the maximum of its down-projected graph neighbours, its affinity to a slot the product of
    descriptor and slot query plus the slot's bias; Sinkhorn scaling turns affinities into a plan P.

    Args:
        width: channels of a token (D).
        slots: S. [paper]
        descriptor_width: channels of a descriptor. [paper]
        neighbours: size of a centre's neighbourhood in the graph, the centre itself included. [inferred]
        tau: temperature of the transport. [paper]
        iterations: Sinkhorn iterations. [paper]
        query_scale: standard deviation of the initial slot queries. At 1 every slot starts as a mixture of few
            tokens; near 0 all slots start as the cloud's mean token, in which a single patch is invisible. [ours]
    """

    def __init__(
        self,
        width: int,
        slots: int = 1024,
        descriptor_width: int = 128,
        neighbours: int = 8,
        tau: float = 0.2,
        iterations: int = 8,
        query_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.tau = tau
        self.iterations = iterations
        self.down = nn.Linear(width, descriptor_width)
        self.queries = nn.Parameter(query_scale * torch.randn(slots, descriptor_width))
        self.bias = nn.Parameter(torch.zeros(slots))

    def forward(self, tokens: Float[Tensor, "B L M D"], centres: Float[Tensor, "B M 3"]) -> SortedTokens:
        """Sorted features and slot coordinates; float32 whatever the autocast."""
        with no_autocast(tokens):
            tokens = tokens.float()
            plan = sinkhorn(self.affinity(self.describe(tokens, centres)), tau=self.tau, iterations=self.iterations)
            layers = tokens.shape[1]
            features = einsum(plan, rearrange(tokens, "b l m d -> b (l m) d"), "b t s, b t d -> b s d")
            coordinates = einsum(plan, repeat(centres, "b m c -> b (l m) c", l=layers), "b t s, b t c -> b s c")
        return SortedTokens(features, coordinates, plan)

    def describe(self, tokens: Float[Tensor, "B L M D"], centres: Float[Tensor, "B M 3"]) -> Float[Tensor, "B T E"]:
        """u_{i,j}: maximum of W_down t + b over the graph neighbours j of i, layer by layer."""
        layers, patches = tokens.shape[1:3]
        _, index = knn(centres, centres, min(self.neighbours, patches))
        projected = rearrange(self.down(tokens), "b l m e -> b m (l e)")
        pooled = gather_points(projected, index).amax(dim=2)
        return rearrange(pooled, "b m (l e) -> b (l m) e", l=layers)

    def affinity(self, descriptors: Float[Tensor, "B T E"]) -> Float[Tensor, "B T S"]:
        """G = E Q^T + b."""
        return einsum(descriptors, self.queries, "b t e, s e -> b t s") + self.bias
