"""The mini-PointNet in evaluation mode: the same tokens from fewer multiply-adds, nested patches encoded together.

Written out for the points x_i of a patch, with h_i = relu(W1 x_i + b1), the published network is

    f_i = W2 h_i + b2
    g = max_i f_i
    token = max_i W4 relu(BN(W3 [g, f_i] + b3)) + b4

In evaluation mode BatchNorm is an affine map and disappears into the layer before it. W3 = [Wg, Wf] then splits into a
part of the patch, computed once, and one of its points; between W2 and Wf lies no nonlinearity, so that Wf W2 is one
narrower layer; and what all points of a patch share passes through a maximum:

    token = max_i W4 relu(Wf W2 h_i + s) + b4    with    s = Wg max_i W2 h_i + (Wg + Wf) b2 + b3

Of nested patches, only s, the ReLU and W4 differ: the rest is computed once, for the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from anomaly3d.models.backbones.group_encoder import GroupEncoder

# Bytes of the widest activation of one pass. On a CPU larger passes leave its cache and smaller ones are all overhead
# (`benchmarks/token_encoder.py --chunk-mb`); an accelerator wants much work at once and only has to have the memory.
CPU_CHUNK_BYTES = 12 * 2**20
ACCELERATOR_CHUNK_BYTES = 512 * 2**20


@dataclass(frozen=True)
class FoldedEncoder:
    """Weights of a `GroupEncoder` as the module's formula names them.

    Folding costs no more than encoding a few patches. So nothing is kept: fold anew before every use, and a change
    of the encoder's weights can never be missed.
    """

    w1: Float[Tensor, "first 3"]
    b1: Float[Tensor, " first"]
    points: Float[Tensor, "second+third first"]  # W2 above Wf W2
    patch: Float[Tensor, "third second"]  # Wg
    shift: Float[Tensor, " third"]  # (Wg + Wf) b2 + b3
    w4: Float[Tensor, "width third"]
    b4: Float[Tensor, " width"]

    @classmethod
    def fold(cls, encoder: GroupEncoder, dtype: torch.dtype | None = None) -> Self:
        """Fold the encoder's evaluation mode in float64; `dtype` of the result is by default that of the encoder."""
        w1, b1 = _with_batch_norm(encoder.first_conv)
        w3, b3 = _with_batch_norm(encoder.second_conv)
        w2, b2 = _affine(encoder.first_conv[3])
        w4, b4 = _affine(encoder.second_conv[3])
        patch, point = w3.chunk(2, dim=1)
        folded = (w1, b1, torch.cat([w2, point @ w2]), patch, (patch + point) @ b2 + b3, w4, b4)
        dtype = dtype or cast(nn.Linear, encoder.first_conv[0]).weight.dtype
        return cls(*(tensor.to(dtype) for tensor in folded))

    def tokens(self, points: Float[Tensor, "n K 3"], chunk_bytes: int | None = None) -> Float[Tensor, "n width"]:
        """Tokens of n centred patches of K points."""
        return self.nested(points, [points.shape[1]], chunk_bytes)[0]

    def nested(
        self, points: Float[Tensor, "n K 3"], sizes: Sequence[int], chunk_bytes: int | None = None
    ) -> list[Float[Tensor, "n width"]]:
        """Tokens of the first `size` points of every patch, for each of `sizes`, in the dtype of `points`.

        Patches go through in chunks of about `chunk_bytes` of the widest activation.
        """
        if not sizes or min(sizes) < 1 or max(sizes) > points.shape[1]:
            raise ValueError(f"sizes {list(sizes)} of patches of {points.shape[1]} points")
        if chunk_bytes is None:
            chunk_bytes = CPU_CHUNK_BYTES if points.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
        patch_bytes = max(sizes) * len(self.points) * self.points.element_size()
        chunks = points[:, : max(sizes)].to(self.w1.dtype).split(max(1, chunk_bytes // patch_bytes))
        parts = [self._nested(chunk, sizes) for chunk in chunks]
        return [torch.cat(tokens).to(points.dtype) for tokens in zip(*parts, strict=True)]

    def _nested(self, points: Float[Tensor, "n K 3"], sizes: Sequence[int]) -> list[Float[Tensor, "n width"]]:
        hidden = linear(points, self.w1, self.b1).relu_()
        # Without a bias here and in the last layer: adding one to every point costs a pass over memory.
        both = linear(hidden, self.points)
        local, point = both.split([self.patch.shape[1], self.patch.shape[0]], dim=-1)
        tokens = []
        for size in sizes:
            shift = linear(local[:, :size].amax(dim=1, keepdim=True), self.patch, self.shift)
            active = (point[:, :size] + shift).relu_()
            tokens.append(linear(active, self.w4).amax(dim=1) + self.b4)
        return tokens


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64."""
    assert isinstance(layer, nn.Linear)
    return layer.weight.double(), layer.bias.double()


def _with_batch_norm(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of the first layer and the BatchNorm behind it."""
    weight, bias = _affine(layers[0])
    norm = cast(nn.BatchNorm1d, layers[1])
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale[:, None] * weight, scale * (bias - norm.running_mean) + norm.bias.double()
