"""Tokens of SeDiR's three nested neighbourhoods: the published way against ours.

    python benchmarks/token_encoder.py [--groups 1024] [--neighbours 128 256 512] [--size base] [--repeats 3]

The mini-PointNet alone, without the transformer behind it, on random patches of one cloud. The variants run
alternately in one process; ratios are those of the medians, errors are those of the tokens against the published
way's. Ratios carry over between machines better than times do, and both say little on a machine that is busy. How
much bfloat16 gains depends on the processor: it needs instructions of its own (avx512_bf16, amx_bf16).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.models.backbones.folded_encoder import FoldedEncoder
from anomaly3d.models.backbones.group_encoder import GroupEncoder
from anomaly3d.models.backbones.point_mae import ARCHITECTURES, Size
from anomaly3d.models.backbones.weights import frozen_point_mae


class PublishedEncoder(nn.Module):
    """The mini-PointNet as Point-MAE's code has it: 1x1 convolutions on (n, C, K), all patches at once."""

    def __init__(self, encoder: GroupEncoder, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, first, 1), nn.BatchNorm1d(first), nn.ReLU(inplace=True), nn.Conv1d(first, second, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * second, third, 1), nn.BatchNorm1d(third), nn.ReLU(inplace=True), nn.Conv1d(third, fourth, 1)
        )
        state = encoder.state_dict()
        self.load_state_dict({k: v[..., None] if v.dim() == 2 else v for k, v in state.items()})

    def forward(self, points: Float[Tensor, "n K 3"]) -> Float[Tensor, "n width"]:
        """Tokens of n patches."""
        size = points.shape[1]
        local = self.first_conv(points.transpose(2, 1))
        pooled = local.max(dim=2, keepdim=True).values
        return self.second_conv(torch.cat([pooled.expand(-1, -1, size), local], dim=1)).max(dim=2).values


def multiply_adds(widths: tuple[int, int, int, int], sizes: Sequence[int]) -> tuple[int, int]:
    """Multiply-adds per centre of passes of their own, and of the folded encoder."""
    first, second, third, fourth = widths
    plain = sum(sizes) * (3 * first + first * second + 2 * second * third + third * fourth)
    shared = max(sizes) * (3 * first + first * (second + third))
    return plain, shared + len(sizes) * second * third + sum(sizes) * third * fourth


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1024)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--size", choices=get_args(Size), default="base")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk-mb", type=float, help="widest activation of one pass; default: the encoder's choice")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    sizes: list[int] = options.neighbours
    chunk_bytes = None if options.chunk_mb is None else int(options.chunk_mb * 2**20)

    widths = ARCHITECTURES[options.size].point_widths
    encoder = frozen_point_mae(options.size, "random").encoder
    published = PublishedEncoder(encoder, widths).eval()
    points = 0.1 * torch.randn(options.groups, max(sizes), 3, generator=torch.Generator().manual_seed(0))
    prefixes = [points[:, :size].contiguous() for size in sizes]

    def folded(dtype: torch.dtype) -> list[Tensor]:
        return FoldedEncoder.fold(encoder, dtype).nested(points, sizes, chunk_bytes)

    plain_count, folded_count = multiply_adds(widths, sizes)
    variants: dict[str, tuple[int, Callable[[], list[Tensor]]]] = {
        "Conv1d, BatchNorm1d": (plain_count, lambda: [published(prefix) for prefix in prefixes]),
        "Linear, BatchNorm1d": (plain_count, lambda: [encoder(prefix) for prefix in prefixes]),
        "folded, nested": (folded_count, lambda: folded(torch.float32)),
        "folded, nested, bfloat16": (folded_count, lambda: folded(torch.bfloat16)),
    }
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"medians of {options.repeats} runs; {options.size}, {options.groups} patches of {', '.join(map(str, sizes))}"
    )
    with torch.inference_mode():
        tokens = {name: torch.cat(run()) for name, (_, run) in variants.items()}  # also warms up
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.repeats):
            for name, (_, run) in variants.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)

    baseline = next(iter(variants))
    print(f"{'':26}{'M mult-adds':>12}{'ms':>9}{'ratio':>8}{'largest error':>15}{'relative error':>16}")
    for name, (count, _) in variants.items():
        error = tokens[name] - tokens[baseline]
        print(
            f"{name:26}{count / 1e6:12.1f}{1e3 * median(times[name]):9.1f}"
            f"{median(times[baseline]) / median(times[name]):7.2f}x"
            f"{error.abs().max():15.1e}{error.norm() / tokens[baseline].norm():16.1e}"
        )


if __name__ == "__main__":
    main()
