"""Memory banks: exact nearest neighbours in them, and the category whose bank knows a cloud best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.ops.precision import no_autocast
from anomaly3d.ops.stages import stage
from anomaly3d.ops.tree import kd_tree, search

_CHUNK_DISTANCES = 1 << 24  # held at a time by the search in torch: 64 MiB in float32
_CHUNK_VALUES = 1 << 26  # of the bank, of which the search makes a copy: 256 MiB
_TREE_COLUMNS = 4  # up to here a k-d tree beats the search through everything


@stage("nearest neighbours")
@torch.no_grad()
def nearest(
    query: Float[Tensor, "N D"], bank: Float[Tensor, "M D"], k: int = 1
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """Euclidean distances, ascending, and indices of each query's k nearest rows of the bank.

    In pieces, also of the bank, so that none is too large: beside it 0.6 GiB at most are held. Neighbours are found by
    |b|^2 - 2qb about the bank's mean, in float32, and their distances then computed from differences: a row may be
    passed over for one as near to seven digits of the norms, but no distance is rounded by them. On the CPU narrow
    features go through a k-d tree.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"{k} nearest neighbours in a bank of {len(bank)} rows")
    if bank.device.type == "cpu" and bank.shape[1] <= _TREE_COLUMNS:
        tree = kd_tree(bank.numpy())
        distance, index = (torch.from_numpy(part.reshape(-1, k)) for part in search(tree, query.numpy(), k))
        return distance.to(query), index
    with no_autocast(bank):
        centre = bank.mean(0)
        pieces = bank.split(max(k, _CHUNK_VALUES // bank.shape[1]))
        value, index = _likest(query - centre, pieces[0] - centre, k)
        first = len(pieces[0])
        for piece in pieces[1:]:
            more, at = _likest(query - centre, piece - centre, min(k, len(piece)))
            value, place = torch.cat([value, more], 1).sort(dim=1, stable=True)
            value, index = value[:, :k], torch.cat([index, at + first], 1).gather(1, place[:, :k])
            first += len(piece)
        exact = [(q[:, None] - bank[i]).norm(dim=-1) for q, i in zip(query.split(4096), index.split(4096), strict=True)]
        distance, order = torch.cat(exact).sort(dim=1, stable=True)
        return distance, index.gather(1, order)


def _likest(
    query: Float[Tensor, "N D"], rows: Float[Tensor, "m D"], k: int
) -> tuple[Float[Tensor, "N k"], Int[Tensor, "N k"]]:
    """The k smallest |b|^2 / 2 - qb of each query q over the rows b, and the indices of these rows."""
    half_norm, rows = rows.square().sum(1) / 2, rows.T.contiguous()
    values, found = [], []
    for part in query.split(max(1, _CHUNK_DISTANCES // len(half_norm))):
        likeness = torch.addmm(half_norm, part, rows, alpha=-1)
        value, index = likeness.min(1, keepdim=True) if k == 1 else likeness.topk(k, largest=False)
        values.append(value)
        found.append(index)
    return torch.cat(values), torch.cat(found)


class Recognised(NamedTuple):
    """How a cloud looks to the bank of its category."""

    category: int
    distance: Float[Tensor, " N"]  # to each feature's nearest row
    index: Int[Tensor, " N"]  # of that row, in the category's bank
    logits: Float[Tensor, " C"]


class CategoryBanks:
    """One bank per category, kept as two tensors: all rows, and where each category's begin.

    A cloud belongs to the category whose bank has the smallest median distance to its features [ours]: the median,
    because a defect is in fewer than half of them. Labels are never asked. With one category this is a plain bank.

    On scans from one side this is a poor guess: of three parts, 33 % (FPFH of 100 neighbours) to 67 % of the clouds are
    named rightly. Medians in units of what a normal cloud of the category has were tried and are no better
    (`benchmarks/results/classical.md`). Registration tells categories there; one detector per category needs neither.
    """

    def __init__(self, rows: Float[Tensor, "M D"], offsets: Int[Tensor, "C+1"]) -> None:
        self.banks = unpack(rows, offsets)

    def recognise(self, features: Float[Tensor, "N D"]) -> Recognised:
        """Nearest rows in the bank of the category that fits best."""
        found = [nearest(features, bank) for bank in self.banks]
        logits = torch.stack([-distance.median() for distance, _ in found])
        category = int(logits.argmax())
        distance, index = found[category]
        return Recognised(category, distance[:, 0], index[:, 0], logits)


@torch.no_grad()
def reweighted(
    features: Float[Tensor, "N D"],
    distance: Float[Tensor, " N"],
    index: Int[Tensor, " N"],
    bank: Float[Tensor, "M D"],
    neighbours: int = 3,
) -> Float[Tensor, ""]:
    """Score of a cloud from its farthest feature, less where the bank is sparse (PatchCore, equation 7).

    `s = (1 - exp(|f - m|) / sum_b exp(|f - m_b|)) |f - m|`, with m the row nearest to the farthest feature f and m_b
    the `neighbours` rows nearest to m. As in public code m counts among the `neighbours` but not in the sum, and
    exponents are divided by the root of D. A row without others weighs nothing: `s = |f - m|` [ours].
    """
    worst = distance.argmax()
    row = bank[index[worst]]
    others = nearest(row[None], bank, min(neighbours, len(bank)))[1][0, 1:]
    if not len(others):
        return distance[worst]
    around = (features[worst] - bank[others]).norm(dim=1) / features.shape[1] ** 0.5
    own = distance[worst] / features.shape[1] ** 0.5
    return (1 - (own - around.logsumexp(0)).exp()) * distance[worst]


def pack(parts: Sequence[Float[Tensor, "m D"]]) -> tuple[Float[Tensor, "M D"], Int[Tensor, "C+1"]]:
    """Rows of all categories, and where each category's begin."""
    sizes = torch.tensor([0, *map(len, parts)], device=parts[0].device)
    return torch.cat(list(parts)), sizes.cumsum(0)


def unpack(rows: Float[Tensor, "M D"], offsets: Int[Tensor, "C+1"]) -> tuple[Tensor, ...]:
    """The inverse of `pack`."""
    return rows.split(offsets.diff().tolist())
