"""Masked autoencoding of patches: how a Point-MAE encoder learns (Pang et al., ECCV 2022).

Module names follow the published pre-training checkpoints (`MAE_encoder.*`, `MAE_decoder.*`, `mask_token`, ...).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anomaly3d.models.backbones.point_mae import ARCHITECTURES, Blocks, PointMAE, Size


class MaskedReconstruction(NamedTuple):
    """Masked patches as they are and as the decoder has them, relative to their centres, in the loss's unit."""

    target: Float[Tensor, "B H R 3"]
    predicted: Float[Tensor, "B H R 3"]
    centres: Float[Tensor, "B G 3"]  # of all patches, the masked ones last; in units of the cloud's radius
    unit: Float[Tensor, "B 1 1 1"]  # of the points above, in units of the cloud's radius

    def loss(self) -> Float[Tensor, ""]:
        """Mean Chamfer-L2 distance."""
        return chamfer_l2(self.predicted.flatten(0, 1), self.target.flatten(0, 1))


class Decoder(Blocks):
    """Transformer blocks behind the encoder; keeps the last `masked` tokens, normalised."""

    def __init__(self, width: int, depth: int, heads: int, drop_path: float) -> None:
        super().__init__(width, depth, heads, drop_path)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "B G D"], position: Float[Tensor, "B G D"], masked: int
    ) -> Float[Tensor, "B H D"]:
        """Tokens of the masked patches; the position embedding is added before every block."""
        for block in self.blocks:
            tokens = block(tokens + position)
        return self.norm(tokens[:, -masked:])


class MaskedAutoencoder(nn.Module):
    """The encoder sees the visible patches only; the decoder draws the points of the masked ones.

    Args:
        size: architecture of the encoder.
        decoder_depth: blocks of the decoder [published: 4].
        drop_path: largest rate of stochastic depth, in the encoder's last block [published: 0.1].
        points: points that the decoder draws per patch [published: 32, all that a patch has]. A larger patch is
            represented by as many of its neighbours, spread evenly over the ranks of their distances [ours].
    """

    def __init__(self, size: Size = "base", decoder_depth: int = 4, drop_path: float = 0.1, points: int = 32) -> None:
        super().__init__()
        width, heads = ARCHITECTURES[size].width, ARCHITECTURES[size].heads
        self.points = points
        self.MAE_encoder = PointMAE(size, drop_path)
        self.MAE_decoder = Decoder(width, decoder_depth, heads, drop_path)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.increase_dim = nn.Sequential(nn.Linear(width, 3 * points))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (m for m in self.MAE_encoder.encoder.modules() if isinstance(m, nn.Linear)):
            linear.reset_parameters()  # the published mini-PointNet keeps torch's initialisation

    def forward(
        self, points: Float[Tensor, "B G K 3"], centres: Float[Tensor, "B G 3"], masked: Bool[Tensor, "B G"]
    ) -> MaskedReconstruction:
        """Reconstruct the masked patches; every cloud has the same number of them.

        Args:
            points: patches with their centres subtracted, neighbours from near to far, K >= `points`.
            centres: in units of the cloud's radius.
            masked: patches that the encoder does not see.
        """
        unit = self.MAE_encoder.unit(points)
        points = points / unit
        # False sorts before true: the visible patches first, both in their own order.
        order = masked.to(torch.uint8).argsort(dim=1, stable=True)
        hidden = int(masked[0].sum())
        rows = torch.arange(len(order), device=order.device)[:, None]
        points, centres = points[rows, order], centres[rows, order]
        visible = centres.shape[1] - hidden
        encoder = self.MAE_encoder
        (tokens,) = encoder.transform(encoder.embed(points[:, :visible]), centres[:, :visible])
        tokens = torch.cat([tokens, self.mask_token.to(tokens.dtype).expand(len(tokens), hidden, -1)], dim=1)
        drawn = self.increase_dim(self.MAE_decoder(tokens, self.decoder_pos_embed(centres), hidden))
        target = points[:, visible:, even_ranks(points.shape[2], self.points)]
        return MaskedReconstruction(target, rearrange(drawn, "b h (r c) -> b h r c", c=3).float(), centres, unit)


def even_ranks(available: int, wanted: int) -> Tensor:
    """`wanted` indices below `available`, spread evenly, the last one included."""
    return (torch.arange(1, wanted + 1) * available) // wanted - 1


def chamfer_l2(a: Float[Tensor, "n P 3"], b: Float[Tensor, "n Q 3"]) -> Float[Tensor, ""]:
    """Mean squared distance to the nearest point of the other set, both ways added, averaged over the n pairs."""
    square = (a[:, :, None] - b[:, None]).square().sum(-1)
    return square.amin(2).mean() + square.amin(1).mean()


def random_mask(batch: int, groups: int, ratio: float, device: torch.device | str = "cpu") -> Bool[Tensor, "B G"]:
    """`int(ratio * groups)` masked patches per cloud, drawn uniformly from the global generator [published: 0.6]."""
    ranks = torch.rand(batch, groups, device=device).argsort(dim=1).argsort(dim=1)
    return ranks < int(ratio * groups)
