"""The two losses that shape the order: sharp columns, and neighbours in space at neighbouring slots."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from anomaly3d.ops.precision import no_autocast

EPS = 1e-6  # of mu_t and of L_ent's logarithm [paper]


def row_distribution(plan: Float[Tensor, "B T S"]) -> Float[Tensor, "B T S"]:
    """The plan with rows that sum to one: where each token goes."""
    return plan / (plan.sum(dim=-1, keepdim=True) + EPS)


def column_entropy(plan: Float[Tensor, "B T S"]) -> Float[Tensor, ""]:
    """L_ent: mean entropy (nats) of the columns, each a distribution over tokens."""
    return -(plan * (plan + EPS).log()).sum(dim=1).mean()


def expected_slot(plan: Float[Tensor, "B T S"]) -> Float[Tensor, "B T"]:
    """mu_t, the expected position of each token, slots lying evenly on [0, 1].

    In slot indices the locality loss would start about S^2 times larger and drown the others at the paper's weights
    [inferred].
    """
    positions = torch.linspace(0, 1, plan.shape[-1], device=plan.device, dtype=plan.dtype)
    return row_distribution(plan) @ positions


def locality(plan: Float[Tensor, "B T S"], centres: Float[Tensor, "B M 3"], sigma: float = 0.05) -> Float[Tensor, ""]:
    """L_loc = 1/T sum_{t,t'} exp(-|p_t - p_t'|^2 / sigma^2) (mu_t - mu_t')^2, mean over the batch.

    The tokens of a patch share its position, so the pairs of two patches i, j, all with the weight w_ij, sum to
    w_ij n_i n_j ((m_i - m_j)^2 + v_i + v_j), with n number, m mean and v (population) variance of mu within a patch:
    M x M instead of T x T, and no difference of large sums. A token that no slot takes (`hungarian` has such) has no
    place in the row, and does not count.
    """
    with no_autocast(plan):
        patches, plan = centres.shape[1], plan.float()
        mu, taken = (
            rearrange(x, "b (l m) -> b l m", m=patches) for x in (expected_slot(plan), (plan.sum(dim=-1) > EPS).float())
        )
        count = taken.sum(dim=1)
        mean = (taken * mu).sum(dim=1) / count.clamp(min=1)
        variance = (taken * (mu - mean[:, None]) ** 2).sum(dim=1) / count.clamp(min=1)
        distance = torch.cdist(centres.float(), centres.float(), compute_mode="donot_use_mm_for_euclid_dist")
        weight = torch.exp(-(distance**2) / sigma**2)
        pairs = (mean[:, :, None] - mean[:, None, :]) ** 2 + variance[:, :, None] + variance[:, None, :]
        pairs = pairs * count[:, :, None] * count[:, None, :]
        return ((weight * pairs).sum(dim=(1, 2)) / count.sum(dim=1).clamp(min=1)).mean()
