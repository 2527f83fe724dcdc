"""Parameters and multiply-adds of SeDiR and MC3D-AD at the papers' sizes, beside the published ones, and of Mamba3dAD.

    python benchmarks/cost.py [--points 57000]

Multiply-adds are counted by torch while one cloud is scored: matrix products and attention, nothing else. Random
weights: their values do not matter.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import token_encoder
from anomaly3d.models.backbones.folded_encoder import FoldedEncoder
from anomaly3d.models.backbones.point_mae import ARCHITECTURES
from anomaly3d.models.mamba3dad import Mamba3dAD
from anomaly3d.models.mc3d_ad import MC3DAD
from anomaly3d.models.sedir import SeDiR
from anomaly3d.ops.multiply_adds import multiply_adds
from anomaly3d.types import PatchGroups, PointCloudBatch

CATEGORIES = [str(i) for i in range(40)]  # Anomaly-ShapeNet


def parameters(*modules: nn.Module | None) -> int:
    """Number of weights, BatchNorm's and other buffers excepted."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def table(title: str, rows: list[tuple[str, int | None, int | None]], published: tuple[str, str]) -> None:
    """Print a table: what, parameters in millions, multiply-adds in billions; the sums and the paper's at the foot."""
    print(f"\n### {title}\n\n| part | parameters (M) | multiply-adds (G) |\n|:--|--:|--:|")
    for name, count, cost in rows:
        cells = ["" if x is None else f"{x:.2f}" for x in (count and count / 1e6, cost and cost / 1e9)]
        print(f"| {name} | {' | '.join(cells)} |")
    total, work = sum(row[1] or 0 for row in rows), sum(row[2] or 0 for row in rows)
    print(f"| **ours** | **{total / 1e6:.2f}** | **{work / 1e9:.2f}** |")
    print(f"| **paper** | **{published[0]}** | **{published[1]}** |")


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=57_000, help="of the cloud; Anomaly-ShapeNet's mean size")
    cloud = torch.randn(parser.parse_args(arguments).points, 3, generator=torch.Generator().manual_seed(0))
    batch = PointCloudBatch.pack([cloud / cloud.norm(dim=1, keepdim=True)], ["sphere"])

    torch.manual_seed(0)
    sedir = SeDiR(backbone_size="base", backbone_weights="random").eval()
    sedir.configure(CATEGORIES)
    groups = sedir.patches(batch)
    view = sedir.view(groups)
    encoder = multiply_adds(lambda: embed(sedir, groups))
    frozen = multiply_adds(lambda: sedir.view(groups))
    reconstruct = multiply_adds(lambda: sedir.reconstruct(view))
    widths = ARCHITECTURES["base"].point_widths
    plain, _ = token_encoder.multiply_adds(widths, sedir.neighbourhoods)
    used = [sedir.backbone.encoder, sedir.backbone.pos_embed, *sedir.backbone.blocks.blocks[:4]]
    table(
        f"SeDiR: {len(groups.centres[0])} patches of {', '.join(map(str, sedir.neighbourhoods))} points",
        [
            ("mini-PointNet, three resolutions at once", parameters(sedir.backbone.encoder), encoder),
            ("frozen transformer, 4 blocks", parameters(*used[1:], sedir.backbone.norm), frozen - encoder),
            ("frozen transformer, the 8 blocks behind", parameters(*sedir.backbone.blocks.blocks[4:]), None),
            (
                "encoder, global token, decoder",
                parameters(sedir.position, sedir.tokenizer, sedir.embed, sedir.guidance, sedir.decoder),
                reconstruct,
            ),
            ("class head", parameters(sedir.contrast), None),
        ],
        ("33.25, of them 22.10 frozen", "508.25"),
    )
    rest = frozen - encoder + reconstruct
    print(
        f"\nWith a pass of its own for every resolution the mini-PointNet takes {plain * 1024 / 1e9:.2f} G, the whole "
        f"{(plain * 1024 + rest) / 1e9:.2f} G."
    )

    mc3d_ad(batch)

    mamba = Mamba3dAD(backbone_size="base", backbone_weights="random", voxel_size=None).eval()
    groups = mamba.sampler(batch)
    tokens = mamba.tokens(groups)
    first = multiply_adds(lambda: FoldedEncoder.fold(mamba.backbone.encoder).tokens(groups.points[0]))
    frozen = multiply_adds(lambda: mamba.tokens(groups))
    ordered = mamba.sort(tokens, groups.centres)
    sorting = multiply_adds(lambda: mamba.sort(tokens, groups.centres))
    features = mamba.features(ordered)
    table(
        f"Mamba3dAD: {len(groups.centres[0])} patches of {groups.points.shape[2]} points, {features.shape[1]} slots",
        [
            ("mini-PointNet", parameters(mamba.backbone.encoder), first),
            (
                "frozen transformer, 12 blocks",
                parameters(mamba.backbone) - parameters(mamba.backbone.encoder),
                frozen - first,
            ),
            ("GSAS", parameters(mamba.gsas), sorting),
            ("adapter", parameters(mamba.adapter, mamba.norm), multiply_adds(lambda: mamba.features(ordered))),
            (
                "discriminator",
                parameters(mamba.discriminator),
                multiply_adds(lambda: mamba.discriminator(features, ordered.coordinates)),
            ),
        ],
        ("not given", "not given; 17.31 clouds a second on a 3090"),
    )


def mc3d_ad(batch: PointCloudBatch) -> None:
    """Print the table of MC3D-AD."""
    mc3d = MC3DAD(num_groups=4096, register=False, backbone_size="base", backbone_weights="random").eval()
    groups = mc3d.patches(batch)
    view, masked = mc3d.view(groups), torch.tensor([True])
    first = multiply_adds(lambda: FoldedEncoder.fold(mc3d.backbone.encoder).tokens(groups.points[0]))
    frozen = multiply_adds(lambda: mc3d.view(groups))
    used = [mc3d.backbone.pos_embed, *mc3d.backbone.blocks.blocks[:4], mc3d.backbone.norm]
    table(
        f"MC3D-AD, as for Real3D-AD: {len(groups.centres[0])} patches of {groups.points.shape[2]} points",
        [
            ("mini-PointNet", parameters(mc3d.backbone.encoder), first),
            ("frozen transformer, 4 blocks", parameters(*used), frozen - first),
            ("frozen transformer, the 8 blocks behind", parameters(*mc3d.backbone.blocks.blocks[4:]), None),
            (
                "position, encoder, decoder, under one mask",
                parameters(mc3d.position, mc3d.encoder, mc3d.decoder),
                multiply_adds(lambda: mc3d.reconstruct(view, masked)),
            ),
        ],
        ("34.16", "not given"),
    )
    print(
        "\nBesides, the published count has 4.19 M query embeddings, which no computation uses, and the class heads of "
        "the model and of the frozen Point-MAE, 0.27 M each: with them ours is 34.16 M too."
    )


def embed(model: SeDiR, groups: PatchGroups) -> list[Tensor]:
    """The mini-PointNet's part of `SeDiR.view`."""
    return FoldedEncoder.fold(model.backbone.encoder).nested(groups.points[0], model.neighbourhoods)


if __name__ == "__main__":
    main()
