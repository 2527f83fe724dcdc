"""GSAS, the sorter: a soft assignment of multi-layer tokens to an ordered row of learned slots."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot

from anomaly3d.models.mamba3dad.ordering import expected_slot
from anomaly3d.ops.grouping import gather_points
from anomaly3d.ops.knn import knn
from anomaly3d.ops.precision import no_autocast
from anomaly3d.ops.sinkhorn import sinkhorn

Ordering = Literal["soft", "argmax", "sort"]


class SortedTokens(NamedTuple):
    """What the sorter hands on; token t = l * M + m is patch m at layer l. R = S slots, or T sorted tokens."""

    features: Float[Tensor, "B R D"]
    coordinates: Float[Tensor, "B R 3"]
    plan: Float[Tensor, "B T S"]  # columns sum to 1, rows to S / T
    assignment: Float[Tensor, "B T R"]  # its rows say in which slots a token is found again


def order(plan: Float[Tensor, "B T S"], ordering: Literal["argmax", "sort"]) -> Int[Tensor, "B R"]:
    """The token that stands at each place: `argmax`, the largest of every slot's column, or `sort`, all tokens by mu_t.

    L_loc draws the mean slots mu_t of neighbours together, not their slots: trained on a curve, neighbours on the curve
    end up near each other in `sort`, while the columns' largest tokens stay in an order like a random one.
    """
    if ordering == "argmax":
        return plan.argmax(dim=1)
    return expected_slot(plan).argsort(dim=1, stable=True)


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

    def forward(
        self, tokens: Float[Tensor, "B L M D"], centres: Float[Tensor, "B M 3"], ordering: Ordering = "soft"
    ) -> SortedTokens:
        """Sorted features and slot coordinates; float32 whatever the autocast.

        `soft`: a slot is its column's mixture of tokens, T_ord = P^T X [paper]. Without mixing, for deployment [paper]:
        `argmax`, a slot is the largest of its column; `sort`, every token once, by its expected slot mu_t.
        """
        with no_autocast(tokens):
            tokens = tokens.float()
            plan = sinkhorn(self.affinity(self.describe(tokens, centres)), tau=self.tau, iterations=self.iterations)
            layers = tokens.shape[1]
            tokens = rearrange(tokens, "b l m d -> b (l m) d")
            places = repeat(centres, "b m c -> b (l m) c", l=layers)
            if ordering == "soft":
                features = einsum(plan, tokens, "b t s, b t d -> b s d")
                coordinates = einsum(plan, places, "b t s, b t c -> b s c")
                return SortedTokens(features, coordinates, plan, plan)
            chosen = order(plan, ordering)
            features, coordinates = (x.take_along_dim(chosen[..., None], dim=1) for x in (tokens, places))
            assignment = plan
            if ordering == "sort":
                assignment = one_hot(chosen, plan.shape[1]).transpose(1, 2).to(plan)
        return SortedTokens(features, coordinates, plan, assignment)

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
