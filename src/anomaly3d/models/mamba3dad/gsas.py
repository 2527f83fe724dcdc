"""GSAS, the sorter: a soft assignment of multi-layer tokens to an ordered row of learned slots."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from anomaly3d.errors import InputError
from anomaly3d.models.mamba3dad.blocks import spatial_blocks
from anomaly3d.models.mamba3dad.ordering import expected_slot
from anomaly3d.ops.grouping import gather_points
from anomaly3d.ops.knn import knn
from anomaly3d.ops.precision import no_autocast
from anomaly3d.ops.sinkhorn import Method, sinkhorn

Ordering = Literal["soft", "argmax", "sort"]
Assignment = Literal["sinkhorn", "softmax", "hungarian"]
Affinity = Literal["dot", "cosine"]


class SortedTokens(NamedTuple):
    """What the sorter hands on; token t = l * M + m is patch m at layer l. R = S slots, or T sorted tokens."""

    features: Float[Tensor, "B R D"]
    coordinates: Float[Tensor, "B R 3"]
    plan: Float[Tensor, "B T S"]  # columns sum to 1, rows to S / T
    assignment: Float[Tensor, "B T R"]  # its rows say in which slots a token is found again


def order(plan: Float[Tensor, "B T S"], ordering: Literal["argmax", "sort"]) -> Int[Tensor, "B R"]:
    """The token that stands at each place: `argmax`, the largest of every slot's column, or `sort`, all tokens by mu_t.

    L_loc draws the mean slots mu_t of neighbours together, not their slots: where the slot queries start independent
    of each other (`query_waves`), trained on a curve, the columns' largest tokens stay in an order like a random one.
    """
    if ordering == "argmax":
        return plan.argmax(dim=1)
    return expected_slot(plan).argsort(dim=1, stable=True)


def initial_queries(slots: int, width: int, waves: int | None) -> Float[Tensor, "S E"]:
    """Queries with entries of variance 1: independent, or a smooth curve over the slots of `waves` cosines."""
    if waves is None:
        return torch.randn(slots, width)
    places = (torch.arange(slots) + 0.5) / slots
    cosines = torch.cos(torch.pi * torch.arange(1, waves + 1) * places[:, None])
    return cosines @ torch.randn(waves, width) * (2 / waves) ** 0.5


class GSAS(nn.Module):
    """Sorts T = L * M tokens into S slots by entropic transport.

    A token's descriptor is the maximum of its down-projected graph neighbours, its affinity to a slot the product of
    descriptor and slot query plus the slot's bias; Sinkhorn scaling turns affinities into a plan P. The bias is the
    paper's and without effect: what it adds to a whole column the column's normalisation takes away, in `softmax` too.

    Args:
        width: channels of a token (D).
        slots: S. [paper]
        descriptor_width: channels of a descriptor. [paper]
        neighbours: size of a centre's neighbourhood in the graph, the centre itself included. [inferred]
        tau: temperature of the transport. [paper]
        iterations: Sinkhorn iterations. [paper]
        assignment: how affinities become the plan: `sinkhorn` [paper]; or, for its ablation, `softmax` over the tokens
            of each column, or `hungarian`, the one-to-one assignment of most affinity, with the softmax's gradient.
        block_tokens: most tokens that are sorted together. More are parted into spatial blocks, each with its share of
            the slots, in a row; None for no limit. [paper; the number is ours]
        query_scale: standard deviation of the initial slot queries. At 1 every slot starts as a mixture of few
            tokens; near 0 all slots start as the cloud's mean token, in which a single patch is invisible. [ours]
        query_waves: the initial slot queries lie along a curve, a sum of so many cosines with random directions: slots
            that are neighbours in the row want similar tokens from the first step on. None draws each on its own; L_loc
            then finds no order of the slots that the cloud's surface could follow. [ours]
        affinity: `dot`, the product of descriptor and query [paper], which training lets grow until eight iterations
            no longer bring the rows to their sums, and few tokens take all slots; or `cosine`, of their angle alone,
            which stays within [-1, 1]. [ours]
        argmax_tau: temperature of the plan from which `argmax` takes its tokens: "near-binary" [paper]. At that of
            training a slot is a mixture of tens of tokens, and few tokens are the largest of most columns. None takes
            tau. [0.005: ours, `benchmarks/results/sorting.md`]
        argmax_iterations: Sinkhorn iterations of that plan, at least: the colder it is, the more steps until its rows
            have their sums. [ours]
        method: of Sinkhorn (`ops.sinkhorn`): `log` for large matrices [paper], or `auto`, which takes it where numbers
            would overflow, and float64 for large ones: the same plan at a tenth of the time. [ours]
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
        query_waves: int | None = 4,
        assignment: Assignment = "sinkhorn",
        block_tokens: int | None = None,
        affinity: Affinity = "dot",
        argmax_tau: float | None = 0.005,
        argmax_iterations: int = 50,
        method: Method = "auto",
    ) -> None:
        super().__init__()
        self.cosine = affinity == "cosine"
        self.assignment: Assignment = assignment
        self.block_tokens = block_tokens
        self.neighbours = neighbours
        self.tau = tau
        self.iterations = iterations
        self.argmax_tau = argmax_tau
        self.argmax_iterations = argmax_iterations
        self.method: Method = method
        self.down = nn.Linear(width, descriptor_width)
        self.queries = nn.Parameter(query_scale * initial_queries(slots, descriptor_width, query_waves))
        self.bias = nn.Parameter(torch.zeros(slots))

    def forward(
        self, tokens: Float[Tensor, "B L M D"], centres: Float[Tensor, "B M 3"], ordering: Ordering = "soft"
    ) -> SortedTokens:
        """Sorted features and slot coordinates; float32 whatever the autocast.

        `soft`: a slot is its column's mixture of tokens, T_ord = P^T X [paper]. Without mixing, for deployment [paper]:
        `argmax`, a slot is the largest of its column in a near-binary plan; `sort`, every token once, by its expected
        slot mu_t.
        """
        with no_autocast(tokens):
            tokens = tokens.float()
            plan = self.plan(self.describe(tokens, centres), centres, sharp=ordering == "argmax")
            layers = tokens.shape[1]
            tokens = rearrange(tokens, "b l m d -> b (l m) d")
            places = repeat(centres, "b m c -> b (l m) c", l=layers)
            if ordering == "soft":
                features = einsum(plan, tokens, "b t s, b t d -> b s d")
                coordinates = einsum(plan, places, "b t s, b t c -> b s c")
                return SortedTokens(features, coordinates, plan, plan)
            chosen = order(plan, ordering)
            features, coordinates = (x.take_along_dim(chosen[..., None], dim=1) for x in (tokens, places))
            # What is found in a slot is found in its token alone, however many the plan would spread it over.
            assignment = one_hot(chosen, plan.shape[1]).transpose(1, 2).to(plan)
        return SortedTokens(features, coordinates, plan, assignment)

    def describe(self, tokens: Float[Tensor, "B L M D"], centres: Float[Tensor, "B M 3"]) -> Float[Tensor, "B T E"]:
        """u_{i,j}: maximum of W_down t + b over the graph neighbours j of i, layer by layer."""
        layers, patches = tokens.shape[1:3]
        _, index = knn(centres, centres, min(self.neighbours, patches))
        projected = rearrange(self.down(tokens), "b l m e -> b m (l e)")
        pooled = gather_points(projected, index).amax(dim=2)
        return rearrange(pooled, "b m (l e) -> b (l m) e", l=layers)

    def affinity(
        self, descriptors: Float[Tensor, "B T E"], slots: Int[Tensor, " R"] | slice = slice(None)
    ) -> Float[Tensor, "B T R"]:
        """G = E Q^T + b, of some slots; with `cosine` of descriptors and queries of length 1."""
        queries = self.queries[slots]
        if self.cosine:
            descriptors, queries = normalize(descriptors, dim=-1), normalize(queries, dim=-1)
        return einsum(descriptors, queries, "b t e, s e -> b t s") + self.bias[slots]

    def plan(
        self, descriptors: Float[Tensor, "B T E"], centres: Float[Tensor, "B M 3"], sharp: bool = False
    ) -> Float[Tensor, "B T S"]:
        """P, block by block where there are too many tokens; `sharp` as `argmax` takes it.

        A block has whole patches, all layers of each, and its share of the slots.

        Raises:
            InputError: a patch alone has more tokens than a block may have, or a block would have no slot.
        """
        patches, layers = centres.shape[1], descriptors.shape[1] // centres.shape[1]
        most = patches if self.block_tokens is None else self.block_tokens // layers
        if most >= patches:
            return self._assign(self.affinity(descriptors), sharp)
        if most < 1:
            raise InputError(
                f"block_tokens={self.block_tokens}: a patch has {layers} tokens; raise it to these or more"
            )
        blocks = math.ceil(patches / most)
        slots = _shares(len(self.queries), patches, blocks, descriptors.device)
        if min(map(len, slots)) == 0:
            raise InputError(
                f"block_tokens={self.block_tokens}: {descriptors.shape[1]} tokens make {blocks} blocks, too many for "
                f"{len(self.queries)} slots; raise it"
            )
        plan = descriptors.new_zeros(*descriptors.shape[:2], len(self.queries))
        for b, cloud in enumerate(centres):
            for patch, slot in zip(spatial_blocks(cloud, blocks), slots, strict=True):
                token = (patch + patches * torch.arange(layers, device=patch.device)[:, None]).flatten()
                affinity = self.affinity(descriptors[b : b + 1, token], slot)
                plan[b, token[:, None], slot] = self._assign(affinity, sharp)[0]
        return plan

    def _assign(self, affinity: Float[Tensor, "B T S"], sharp: bool) -> Float[Tensor, "B T S"]:
        tau, iterations = self.tau, self.iterations
        if sharp and self.argmax_tau is not None:
            tau, iterations = self.argmax_tau, max(iterations, self.argmax_iterations)
        if self.assignment == "sinkhorn":
            return sinkhorn(affinity, tau, iterations, self.method)
        soft = (affinity / tau).softmax(dim=1)
        if self.assignment == "softmax":
            return soft
        hard = torch.zeros_like(soft)
        for b, gains in enumerate(affinity.detach().double().cpu().numpy()):
            token, slot = linear_sum_assignment(gains, maximize=True)
            hard[b, token, slot] = 1
        return hard + soft - soft.detach()


def _shares(slots: int, patches: int, blocks: int, device: torch.device) -> tuple[Int[Tensor, " _"], ...]:
    """The slots of each spatial block, in a row, in proportion to its patches."""
    sizes = torch.tensor([len(part) for part in torch.arange(patches).tensor_split(blocks)])
    ends = sizes.cumsum(0) * slots // patches
    return torch.arange(slots, device=device).tensor_split(ends[:-1])
