"""A registered cloud as the model sees it: as dense as the others, in its template's frame, and whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import InputError, check_range
from anomaly3d.models.components.one_by_one import order_of
from anomaly3d.models.components.patches import Frame
from anomaly3d.models.components.registration import Template
from anomaly3d.ops.stages import stage
from anomaly3d.ops.tree import kd_tree, search
from anomaly3d.ops.voxel import voxel_filter

COMPLETE_GAP = 0.8
"""A larger one leaves a gap that looks like a defect (`benchmarks/results/registration.md`)."""


@dataclass(frozen=True)
class Completion:
    """What is done to a cloud once it lies on its template.

    Attributes:
        protocol: `strict`: nothing depends on the order of the file's points.
        resolution: edge of a voxel filter, in units of the template's radius, by which clouds of different densities
            become alike; None leaves every point.
        complete: join to a cloud that is scored what the template has where the cloud has nothing. A scan from one side
            is then whole, without a border that no training cloud has; but a missing part is filled, too, and no longer
            seen.
        gap: how far from the cloud nothing begins, in edges of the voxel filter.
    """

    protocol: str
    resolution: float | None = None
    complete: bool = False
    gap: float = COMPLETE_GAP

    def thinned(self, cloud: Float[Tensor, "N 3"], template: Template) -> Float[Tensor, "n 3"]:
        """A placed cloud at the resolution, as training clouds are seen: they are whole."""
        if self.resolution is None:
            return cloud
        return voxel_filter(cloud[order_of(cloud, self.protocol)], self.resolution * template.radius)

    @stage("completion")
    def completed(self, cloud: Float[Tensor, "N 3"], template: Template) -> Float[Tensor, "m 3"]:
        """A placed cloud at the resolution, as clouds that are scored are seen; its own points come first."""
        cloud = self.thinned(cloud, template)
        if not self.complete or self.resolution is None:
            return cloud
        key = (self.protocol, self.resolution)
        if key not in template.thinned:
            template.thinned[key] = self.thinned(template.xyz, template)
        rest = template.thinned[key]
        distance, _ = search(kd_tree(cloud.cpu().numpy()), rest.cpu().numpy())
        bare = torch.from_numpy(distance > self.gap * self.resolution * template.radius).to(rest.device)
        return torch.cat([cloud, rest[bare].to(cloud)])


def template_frame(template: Template, cloud: Float[Tensor, "N 3"]) -> Frame:
    """The template's frame, on the device of the cloud: in its own, the part that a scan shows would lie elsewhere."""
    return Frame(template.centre.to(cloud), torch.as_tensor(template.radius).to(cloud))


def make_completion(
    register: bool, complete: bool, protocol: str, resolution: float | None, complete_gap: float
) -> Completion:
    """The settings, checked together.

    Raises:
        InputError: a number is out of range, or `complete` stands without `register` or a resolution.
    """
    check_range(1e-6, 1, resolution=resolution)
    check_range(0, inf, complete_gap=complete_gap)
    if complete and (not register or resolution is None):
        raise InputError("complete: it takes points from registered templates; set register to true, and a resolution")
    return Completion(protocol, resolution, complete, complete_gap)
