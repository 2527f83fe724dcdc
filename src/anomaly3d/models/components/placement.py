"""Clouds of any pose, and from one side, brought into the pose and the frame of their category's template."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import check_range
from anomaly3d.models.components.cache import FrozenCache
from anomaly3d.models.components.completion import COMPLETE_GAP, Completion, make_completion, template_frame
from anomaly3d.models.components.extent import check_extent
from anomaly3d.models.components.fpfh import open3d
from anomaly3d.models.components.one_by_one import order_of
from anomaly3d.models.components.patches import Frame
from anomaly3d.models.components.registration import RegistrationSettings, Template, apply_pose
from anomaly3d.models.components.seen import Seen, by_category, gather_seen
from anomaly3d.models.components.sized_buffers import part_of
from anomaly3d.models.components.template_memory import TemplateMemory
from anomaly3d.types import PointCloudBatch


class PlacedClouds(NamedTuple):
    """Clouds as a detector takes them."""

    batch: PointCloudBatch  # every point of the files, where it is placed
    seen: PointCloudBatch  # the points that the model sees
    frames: list[Frame] | None  # the templates'; None: each cloud's own
    logits: Float[Tensor, "B C"] | None  # of the category, where it is predicted


class Placement(nn.Module):
    """Registers clouds to one template per category: its first training cloud by sample id.

    The first pass over the training clouds finds the templates, and learns nothing. A placed cloud's frame is the
    template's: in its own, the part that a scan shows would lie elsewhere than in the whole.

    Args:
        completion: what is done to a cloud that is placed.
        hypotheses: triples of correspondences that RANSAC draws.
    """

    def __init__(self, completion: Completion, hypotheses: int = RegistrationSettings.hypotheses) -> None:
        super().__init__()
        self.templates = TemplateMemory(hypotheses)
        self.completion = completion
        self.protocol = completion.protocol
        self._seen: dict[str, Seen] = {}
        self._poses = FrozenCache[tuple[Tensor]](0.01, self.templates)

    @property
    def ready(self) -> bool:
        """Whether there are templates."""
        return not self.templates.empty

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """For the templates; `state` has this module's keys."""
        self.templates.make_room(part_of(state, "templates."))

    def observe(self, batch: PointCloudBatch) -> None:
        """Remember clouds that are the first of their category so far, by sample id.

        Raises:
            InputError: all points of a cloud coincide.
            ValueError: the batch has no categories.
        """
        for cloud, name, category in batch.named_clouds():
            check_extent(cloud, name)
            known = _required(category)
            first = next((seen.sample_id for seen in self._seen.values() if seen.category == known), None)
            if first is None or name < first:
                self._seen.pop(first or "", None)
                self._seen[name] = Seen(name, known, cloud[order_of(cloud, self.protocol)])

    def finish_pass(self, categories: Sequence[str]) -> None:
        """Keep the templates after the first pass. A collective call."""
        if self.ready:
            return
        for theirs in gather_seen(self._seen, self.templates.here.device):
            self._seen |= theirs
        seen = [self._seen[name] for name in sorted(self._seen)]
        self.templates.keep([clouds[0] for clouds in by_category(seen, categories)])
        self._seen = {}

    def known(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> PlacedClouds:
        """A whole cloud on the template of its category. Its pose is kept: training clouds come again and again.

        Raises:
            ValueError: the category is None.
        """
        category = _required(category)
        template = self.templates.placing().templates[category]
        (pose,) = self._poses(cloud, lambda: (self._pose(cloud, name, template),), category)
        placed = apply_pose(pose, cloud)
        thin = self.completion.thinned(placed, template)
        return PlacedClouds(_pack([placed], [name]), _pack([thin], [name]), [template_frame(template, cloud)], None)

    def predicted(self, batch: PointCloudBatch) -> PlacedClouds:
        """Clouds on the templates that fit them best, whatever their category is said to be.

        Raises:
            InputError: all points of a cloud coincide, or the detector has seen no training clouds.
        """
        placing = self.templates.placing()
        clouds, seen, frames, logits = [], [], [], []
        for cloud, name in zip(batch.clouds(), batch.sample_id, strict=True):
            check_extent(cloud, name)
            found = placing.place(cloud[order_of(cloud, self.protocol)])
            template = placing.templates[found.category]
            placed = found.registration.apply(cloud)
            clouds.append(placed)
            seen.append(self.completion.completed(placed, template))
            frames.append(template_frame(template, cloud))
            logits.append(found.logits)
        names = batch.sample_id
        return PlacedClouds(_pack(clouds, names), _pack(seen, names), frames, torch.stack(logits))

    def _pose(self, cloud: Tensor, name: str, template: Template) -> Tensor:
        found = template.register(cloud[order_of(cloud, self.protocol)])
        if not template.accepts(found, cloud):
            warnings.warn(
                f"{name}: does not fit the template of its category well; is it another part, or cut off?", stacklevel=2
            )
        return torch.from_numpy(found.pose)


def make_placement(
    register: bool,
    complete: bool,
    protocol: str,
    hypotheses: int = RegistrationSettings.hypotheses,
    resolution: float | None = None,
    complete_gap: float = COMPLETE_GAP,
) -> Placement | None:
    """None where clouds are not to be registered.

    Raises:
        InputError: open3d is missing; a number is out of range; or `complete` without `register` or a resolution.
    """
    check_range(1, inf, hypotheses=hypotheses)
    completion = make_completion(register, complete, protocol, resolution, complete_gap)
    if not register:
        return None
    open3d("register")  # missed now, not after the first pass
    return Placement(completion, hypotheses)


def _pack(clouds: Sequence[Tensor], names: Sequence[str]) -> PointCloudBatch:
    return PointCloudBatch.pack(clouds, names).to(clouds[0].device)


def _required(category: int | None) -> int:
    if category is None:
        raise ValueError("Training clouds are registered by their category, and this batch has none.")
    return category
