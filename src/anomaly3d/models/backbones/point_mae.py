"""Point-MAE (Pang et al., ECCV 2022): the frozen token encoder of both papers.

Module names follow the published checkpoints, so that their keys load without a translation table:
`encoder.*` (mini-PointNet), `pos_embed.*`, `blocks.blocks.*`, `norm.*`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from anomaly3d.errors import InputError
from anomaly3d.models.backbones.folded_encoder import FoldedEncoder
from anomaly3d.models.backbones.group_encoder import GroupEncoder
from anomaly3d.ops.stages import stage

Size = Literal["base", "point_bert", "paper_width", "small", "tiny"]


class Architecture(NamedTuple):
    """Sizes of a Point-MAE encoder."""

    width: int
    depth: int
    heads: int
    point_widths: tuple[int, int, int, int]  # layers of the mini-PointNet; a last one unlike `width` is projected
    unit_patches: bool  # patches are scaled to unit size before the mini-PointNet


ARCHITECTURES: dict[Size, Architecture] = {
    "base": Architecture(384, 12, 6, (128, 256, 512, 384), False),  # every published Point-MAE checkpoint
    "point_bert": Architecture(384, 12, 6, (128, 256, 512, 256), False),
    "paper_width": Architecture(768, 6, 12, (128, 256, 512, 768), False),  # what Mamba3dAD writes of its backbone
    "small": Architecture(192, 6, 6, (64, 128, 256, 192), True),
    "tiny": Architecture(96, 4, 4, (32, 64, 128, 96), True),
}


class Attention(nn.Module):
    """Multi-head self-attention, queries, keys and values without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B G D"]) -> Float[Tensor, "B G D"]:
        """Attend within each cloud."""
        q, k, v = rearrange(self.qkv(x), "b g (three h d) -> three b h g d", three=3, h=self.heads)
        return self.proj(rearrange(scaled_dot_product_attention(q, k, v), "b h g d -> b g (h d)"))


class Mlp(nn.Module):
    """Two layers with GELU, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Token-wise."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; in training a branch of a cloud is left out at the rate `drop_path`."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Float[Tensor, "B G D"]) -> Float[Tensor, "B G D"]:
        """One block."""
        x = x + self._kept(self.attn(self.norm1(x)))
        return x + self._kept(self.mlp(self.norm2(x)))

    def _kept(self, branch: Float[Tensor, "B G D"]) -> Float[Tensor, "B G D"]:
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class Blocks(nn.Module):
    """The stack of blocks; a module of its own because the published keys read `blocks.blocks.i`."""

    def __init__(self, width: int, depth: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, drop_path * i / max(1, depth - 1)) for i in range(depth))


class PointMAE(nn.Module):
    """The encoder of Point-MAE: patches to tokens.

    Args:
        size: `base` is the published network (12 blocks of width 384), `point_bert` the same behind a narrower
            mini-PointNet. Our own: `small`, 6 blocks of 192, whose weights come with the package, and `tiny`, 4 of 96.
        drop_path: rate of stochastic depth in the last block when training, rising from 0 in the first.

    The published encoder sees coordinates in units of the cloud's radius, and knows only patches of the size of its
    pre-training: 32 of 1024 points, a third of the radius. The patches of dense clouds are ten times smaller; to it
    they all look like one point. Our own sizes therefore divide a cloud's patches by their mean radius [ours].
    """

    def __init__(self, size: Size = "base", drop_path: float = 0.0) -> None:
        super().__init__()
        self.size: Size = size
        architecture = ARCHITECTURES[size]
        self.width, self.depth = architecture.width, architecture.depth
        self.encoder = GroupEncoder(architecture.point_widths)
        token_width = architecture.point_widths[-1]
        self.reduce_dim = nn.Identity() if token_width == self.width else nn.Linear(token_width, self.width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, self.width))
        self.blocks = Blocks(self.width, self.depth, architecture.heads, drop_path)
        self.norm = nn.LayerNorm(self.width)

    def forward(
        self,
        points: Float[Tensor, "B G K 3"],
        centres: Float[Tensor, "B G 3"],
        blocks: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "B G D"]]:
        """Tokens after each of `blocks` (1-based; default: the last), every one through the final LayerNorm.

        Blocks behind the last one asked for are not computed. The position embedding is added before every block.
        """
        return self.nested(points, centres, [points.shape[2]], blocks)[0]

    def nested(
        self,
        points: Float[Tensor, "B G K 3"],
        centres: Float[Tensor, "B G 3"],
        sizes: Sequence[int],
        blocks: Sequence[int] | None = None,
    ) -> list[list[Float[Tensor, "B G D"]]]:
        """`forward` for the first `size` points of every patch, for each of `sizes`, at less than their summed cost.

        Neighbours sorted from near to far make these the smaller neighbourhoods of the same centres. They share the
        first layers and therefore one scale: the sizes with unit patches divide by the mean radius of the largest.
        """
        points = points[:, :, : max(sizes)]
        points = points / self.unit(points)
        # One batch through the transformer: three small ones leave cores idle.
        tokens = torch.cat(self.embed_nested(points, sizes))
        stages = self.transform(tokens, centres.repeat(len(sizes), 1, 1), blocks)
        return [list(one_size) for one_size in zip(*(stage.chunk(len(sizes)) for stage in stages), strict=True)]

    @stage("transformer")
    def transform(
        self, tokens: Float[Tensor, "B G D"], centres: Float[Tensor, "B G 3"], blocks: Sequence[int] | None = None
    ) -> list[Float[Tensor, "B G D"]]:
        """Embedded patches through the transformer."""
        wanted = [self.depth] if blocks is None else list(blocks)
        if not wanted or min(wanted) < 1 or max(wanted) > self.depth:
            raise InputError(f"blocks {wanted}: Point-MAE '{self.size}' has blocks 1 to {self.depth}")
        position = self.pos_embed(centres)
        collected: dict[int, Tensor] = {}
        for number, block in enumerate(self.blocks.blocks[: max(wanted)], start=1):
            tokens = block(tokens + position)
            if number in wanted:
                collected[number] = self.norm(tokens)
        return [collected[number] for number in wanted]

    def unit(self, points: Float[Tensor, "B G K 3"]) -> Float[Tensor, "B 1 1 1"]:
        """The length that patch coordinates are divided by before they are embedded."""
        return patch_radius(points) if ARCHITECTURES[self.size].unit_patches else torch.ones_like(points[:, :1, :1, :1])

    def embed(self, points: Float[Tensor, "B G K 3"]) -> Float[Tensor, "B G D"]:
        """Patch tokens before the transformer, from points in units of `unit`."""
        return self.embed_nested(points, [points.shape[2]])[0]

    @stage("mini-PointNet")
    def embed_nested(self, points: Float[Tensor, "B G K 3"], sizes: Sequence[int]) -> list[Float[Tensor, "B G D"]]:
        """Tokens of the first `size` points of every patch before the transformer, for each of `sizes`."""
        flat = points.flatten(0, 1)
        if self.training:  # with the statistics of this batch, which the folded encoder does not know
            tokens = [self.encoder(flat[:, :size]) for size in sizes]
        else:
            tokens = FoldedEncoder.fold(self.encoder).nested(flat, sizes)
        return [self.reduce_dim(part).unflatten(0, points.shape[:2]) for part in tokens]


def patch_radius(points: Float[Tensor, "B G K 3"]) -> Float[Tensor, "B 1 1 1"]:
    """Mean radius of each cloud's patches: the largest distance of a point to its patch's centre, on average."""
    radius = points.norm(dim=-1).amax(dim=-1).mean(dim=-1)
    return radius.clamp(min=torch.finfo(points.dtype).tiny)[:, None, None, None]


class FrozenPointMAE(PointMAE):
    """A Point-MAE that never learns: no gradient, evaluation mode always."""

    def __init__(self, size: Size = "base") -> None:
        super().__init__(size)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever the parent does."""
        return super().train(False)

    @torch.no_grad()
    def nested(
        self,
        points: Float[Tensor, "B G K 3"],
        centres: Float[Tensor, "B G 3"],
        sizes: Sequence[int],
        blocks: Sequence[int] | None = None,
    ) -> list[list[Float[Tensor, "B G D"]]]:
        """As `PointMAE.nested`, and `forward` through it, without a graph."""
        return super().nested(points, centres, sizes, blocks)

    def thawed(self, depth: int) -> PointMAE:
        """A copy that learns; of the blocks behind `depth`, which no token passes, nothing is trained."""
        copy = PointMAE(self.size)
        copy.load_state_dict(self.state_dict())
        copy.blocks.blocks[depth:].requires_grad_(False)
        return copy
