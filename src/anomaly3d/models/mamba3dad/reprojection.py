"""From slot logits back to points: slots -> tokens -> patches -> points."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.ops.knn import knn
from anomaly3d.ops.precision import no_autocast

_NO_MASS = 1e-12


def patch_scores(logits: Float[Tensor, "B S"], plan: Float[Tensor, "B T S"], patches: int) -> Float[Tensor, "B M"]:
    """Tokens average their slots' logits under the row-normalised plan; a patch takes the maximum over its layers.

    A token that no slot takes (under Hungarian or softmax assignment) says nothing; a patch of such tokens alone has
    the mean of the others [ours].
    """
    with no_autocast(plan):
        plan = plan.float()
        mass = plan.sum(dim=-1)
        tokens = einsum(plan, logits.float(), "b t s, b s -> b t") / mass.clamp_min(_NO_MASS)
        tokens = tokens.masked_fill(mass <= _NO_MASS, -torch.inf)
        scores = rearrange(tokens, "b (l m) -> b l m", m=patches).amax(dim=1)
        unseen = scores.isneginf()
        others = scores.masked_fill(unseen, 0).sum(1, keepdim=True) / (~unseen).sum(1, keepdim=True).clamp_min(1)
        return torch.where(unseen, others, scores)


def point_scores(
    scores: Float[Tensor, " M"],
    index: Int[Tensor, "M K"],
    centres: Float[Tensor, "M 3"],
    cloud: Float[Tensor, "N 3"],
) -> Float[Tensor, " N"]:
    """The maximum over the patches that hold a point; a point in no patch takes its nearest centre's score."""
    spread = scores[:, None].expand(index.shape)
    points = scores.new_full((len(cloud),), -torch.inf)
    points = points.scatter_reduce(0, index.flatten(), spread.flatten(), reduce="amax")
    bare = torch.isneginf(points)
    if bare.any():
        _, nearest = knn(cloud[bare][None], centres[None], 1)
        points[bare] = scores[nearest[0, :, 0]]
    return points


def in_order_of_file(
    scores: Float[Tensor, " N"], order: Int[Tensor, " N"], xyz: Float[Tensor, "N 3"]
) -> Float[Tensor, " N"]:
    """Scores of the points `xyz[order]`, put at the points `xyz`.

    Points that coincide and follow one another in the order, as in canonical order, share the first one's score:
    only their places in the file tell them apart.
    """
    cloud = xyz[order]
    place = torch.arange(len(order), device=order.device)
    repeated = torch.zeros_like(place, dtype=torch.bool)
    repeated[1:] = (cloud[1:] == cloud[:-1]).all(dim=1)
    first = place.masked_fill(repeated, 0).cummax(0).values
    return torch.empty_like(scores).index_copy_(0, order, scores[first])
