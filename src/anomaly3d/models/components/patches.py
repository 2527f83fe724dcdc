"""From clouds to overlapping patches: voxel filter, unit sphere, farthest-point centres, nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import InputError, about
from anomaly3d.models.components.extent import check_extent
from anomaly3d.ops.canonical import order_seen
from anomaly3d.ops.fps import farthest_point_sampling
from anomaly3d.ops.grouping import gather_points
from anomaly3d.ops.knn import knn
from anomaly3d.ops.sphere import centre_and_radius
from anomaly3d.ops.stages import stage
from anomaly3d.ops.voxel import voxel_filter
from anomaly3d.types import PatchGroups, PointCloudBatch


class Frame(NamedTuple):
    """The sphere that becomes the unit sphere of the model, in file units."""

    centroid: Float[Tensor, "3"]
    radius: Float[Tensor, ""]


@dataclass(frozen=True)
class FramedClouds:
    """Clouds in the model's frame, each with its `Frame` as the unit sphere, and what leads back to file units."""

    clouds: tuple[Float[Tensor, "N 3"], ...]
    centroid: Float[Tensor, "B 3"]
    radius: Float[Tensor, " B"]
    sample_id: tuple[str, ...]


class PatchSampler(nn.Module):
    """Cuts every cloud of a batch into `num_groups` patches of `group_size` points.

    Args:
        num_groups: patches per cloud (G).
        group_size: points per patch (K), the centre included.
        voxel_size: edge of the voxel filter in file units; None leaves every point.
        canonical: put points in lexicographic order and start the farthest-point sampling at the point farthest
            from the mean, so that nothing depends on the order of the points in the file (`strict`). False keeps
            the file's order and starts at its first point, as the published code bases do (`paper`).
        pad: repeat a patch's centre where a cloud has fewer than `group_size` points. Exact for max-pooling
            encoders; otherwise such a cloud is an error.
    """

    def __init__(
        self,
        num_groups: int,
        group_size: int,
        voxel_size: float | None = None,
        canonical: bool = True,
        pad: bool = False,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_size = group_size
        self.voxel_size = voxel_size
        self.canonical = canonical
        self.pad = pad

    def forward(self, batch: PointCloudBatch, frames: Sequence[Frame] | None = None) -> PatchGroups:
        """Patches of the batch's clouds; raises InputError for a cloud with too few or coincident points."""
        return self.group(self.frame(batch, frames))

    @torch.no_grad()
    def frame(self, batch: PointCloudBatch, frames: Sequence[Frame] | None = None) -> FramedClouds:
        """Voxel-filter the clouds and scale each into the unit sphere, or its frame where `frames` are given."""
        clouds, found = [], []
        for b, (cloud, name) in enumerate(zip(batch.clouds(), batch.sample_id, strict=True)):
            # First of all: then even the sums below add in one order, whatever the file's.
            with stage("canonical order"):
                cloud = cloud[self.order(cloud)]
            if self.voxel_size is not None:
                with stage("voxel filter"), about(name):
                    cloud = self._filtered(cloud, self.voxel_size)
            self._check_size(len(cloud), name)
            check_extent(cloud, name)
            centroid, radius = own_frame(cloud) if frames is None else frames[b]
            clouds.append((cloud - centroid) / radius)
            found.append(Frame(centroid, radius))
        centroids, radii = zip(*found, strict=True)
        return FramedClouds(tuple(clouds), torch.stack(centroids), torch.stack(radii), batch.sample_id)

    def order(self, cloud: Float[Tensor, "N 3"]) -> Int[Tensor, " N"]:
        """The order in which the model sees the points: canonical, or the file's."""
        return order_seen(cloud, self.canonical)

    @torch.no_grad()
    def group(self, framed: FramedClouds) -> PatchGroups:
        """Centres by farthest-point sampling, patches by nearest neighbours, for clouds already in the frame."""
        centres, points, index = [], [], []
        for cloud, name in zip(framed.clouds, framed.sample_id, strict=True):
            self._check_size(len(cloud), name)
            one = cloud[None]
            start = None if self.canonical else torch.zeros(1, dtype=torch.long, device=cloud.device)
            with stage("FPS"):
                centre = gather_points(one, farthest_point_sampling(one, self.num_groups, start))
            with stage("kNN and grouping"):
                neighbours = self._neighbours(centre, one)
                points.append(gather_points(one, neighbours) - centre[:, :, None])
            centres.append(centre)
            index.append(neighbours)
        return PatchGroups(
            centres=torch.cat(centres),
            points=torch.cat(points),
            index=torch.cat(index),
            cloud=framed.clouds,
            centroid=framed.centroid,
            radius=framed.radius,
        )

    def _filtered(self, cloud: Float[Tensor, "N 3"], voxel_size: float) -> Float[Tensor, "V 3"]:
        try:
            return voxel_filter(cloud, voxel_size)
        except InputError as error:
            raise InputError(
                f"{error}; is it in another unit? Give a larger --model.detector.init_args.voxel_size, which is in the "
                "unit of the file"
            ) from error

    def _neighbours(self, centre: Float[Tensor, "1 G 3"], cloud: Float[Tensor, "1 N 3"]) -> Int[Tensor, "1 G K"]:
        _, neighbours = knn(centre, cloud, min(self.group_size, cloud.shape[1]))
        missing = self.group_size - neighbours.shape[-1]
        return torch.cat([neighbours, neighbours[..., :1].expand(-1, -1, missing)], dim=-1) if missing else neighbours

    def _check_size(self, size: int, name: str) -> None:
        needed = self.num_groups if self.pad else max(self.num_groups, self.group_size)
        if size >= needed:
            return
        filtered = "" if self.voxel_size is None else f" after the voxel filter of {self.voxel_size}"
        raise InputError(
            f"{name}: {size} points{filtered}, but {self.num_groups} patches of {self.group_size} points need at "
            f"least {needed}; lower num_groups or group_size (--model.detector.init_args)"
            + ("" if self.voxel_size is None else " or its voxel_size (it is in the units of the file)")
        )


def own_frame(cloud: Float[Tensor, "N 3"]) -> Frame:
    """The smallest sphere about the cloud's mean."""
    centre, radius = centre_and_radius(cloud)
    return Frame(centre, cloud.new_tensor(radius))
