"""Mini-PointNet of Point-MAE (Pang et al., ECCV 2022): a patch's points become its token."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


class GroupEncoder(nn.Module):
    """Mini-PointNet: one token for the points of a patch, independent of their order.

    Two point-wise layers, the patch's maximum joined to every point, two more layers, maximum again. Layers are
    `Linear` on points (the published ones are 1x1 convolutions: the same numbers, slower on a CPU).

    For training; `folded_encoder` computes the same faster once the weights stand still.
    """

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.first_conv = nn.Sequential(
            nn.Linear(3, first), nn.BatchNorm1d(first), nn.ReLU(inplace=True), nn.Linear(first, second)
        )
        self.second_conv = nn.Sequential(
            nn.Linear(2 * second, third), nn.BatchNorm1d(third), nn.ReLU(inplace=True), nn.Linear(third, fourth)
        )

    def forward(self, points: Float[Tensor, "n K 3"]) -> Float[Tensor, "n width"]:
        """Tokens of n patches of K points, each patch centred."""
        n, size, _ = points.shape
        local = self.first_conv(points.flatten(0, 1)).unflatten(0, (n, size))
        join, *rest = self.second_conv
        assert isinstance(join, nn.Linear)
        # Published: join(cat[pooled, local]). The pooled half is the same for all points of a patch: once is enough.
        of_pooled, of_local = join.weight.split(local.shape[-1], dim=1)
        joined = linear(local, of_local, join.bias) + linear(local.amax(dim=1, keepdim=True), of_pooled)
        return nn.Sequential(*rest)(joined.flatten(0, 1)).unflatten(0, (n, size)).amax(dim=1)
