"""Clouds of any pose, and from one side, brought into the pose and the frame of their category's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomaly3d.errors import InputError, check_range
from anomaly3d.models.components.cache import FrozenCache
from anomaly3d.models.components.completion import COMPLETE_GAP, Completion, make_completion, template_frame
from anomaly3d.models.components.extent import check_extent
from anomaly3d.models.components.fpfh import open3d
from anomaly3d.models.components.offsets import TemplateOffsets
from anomaly3d.models.components.one_by_one import order_of
from anomaly3d.models.components.patches import Frame
from anomaly3d.models.components.registration import RegistrationSettings, Template, apply_pose
from anomaly3d.models.components.seen import Seen, by_category, gather_seen
from anomaly3d.models.components.sized_buffers import make_room_first, part_of
from anomaly3d.models.components.template_memory import TemplateMemory
from anomaly3d.models.components.templates import registered
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
        offsets: keeps all training clouds after the first pass, to measure how far clouds lie from them; None keeps
            none.
    """

    def __init__(
        self,
        completion: Completion,
        hypotheses: int = RegistrationSettings.hypotheses,
        offsets: TemplateOffsets | None = None,
    ) -> None:
        super().__init__()
        self.templates = TemplateMemory(hypotheses)
        self.offsets = offsets
        self.measures = offsets is not None
        self.completion = completion
        self.protocol = completion.protocol
        self._seen: dict[str, Seen] = {}
        self._poses = FrozenCache[tuple[Tensor]](0.01, self._posed_by)
        self.register_load_state_dict_pre_hook(make_room_first)

    @property
    def ready(self) -> bool:
        """Whether there are templates."""
        return not self.templates.empty

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """For the templates and the offsets; `state` has this module's keys.

        Raises:
            InputError: offsets are to be measured, and templates are in the state without them.
        """
        self.templates.make_room(part_of(state, "templates."))
        of_offsets = part_of(state, "offsets.")
        if not self.measures:  # but the state may be of one that does
            self.offsets = TemplateOffsets().to(self.templates.here.device) if of_offsets else None
        elif not of_offsets and part_of(state, "templates."):
            raise InputError(
                "offset_share: the checkpoint has no training clouds to measure distances from; train with one above "
                "0, or set it to 0"
            )
        if self.offsets is not None:
            self.offsets.make_room(of_offsets)

    def observe(self, batch: PointCloudBatch) -> None:
        """Remember clouds that are the first of their category so far, by sample id, or all for the offsets.

        Raises:
            InputError: all points of a cloud coincide.
            ValueError: the batch has no categories.
        """
        for cloud, name, category in batch.named_clouds():
            check_extent(cloud, name)
            known = _required(category)
            first = next((seen.sample_id for seen in self._seen.values() if seen.category == known), None)
            if self.offsets is not None:
                self._seen[name] = Seen(name, known, cloud.clone())  # not a view into its whole batch
            elif first is None or name < first:
                self._seen.pop(first or "", None)
                self._seen[name] = Seen(name, known, cloud.clone())

    def finish_pass(self, categories: Sequence[str]) -> None:
        """Keep the templates after the first pass. A collective call."""
        if self.ready:
            return
        firsts = [clouds[0] for clouds in self._gathered(self._firsts(), categories)]
        self.templates.keep([cloud[order_of(cloud, self.protocol)] for cloud in firsts])
        if self.offsets is not None:
            placed = {name: self._thinned(self.offsets, seen) for name, seen in self._seen.items()}
            radii = [template.radius for template in self.templates.placing().templates]
            self.offsets.keep(self._gathered(placed, categories), radii)
        self._seen = {}

    def _firsts(self) -> dict[str, Seen]:
        """The first cloud of each category that was seen here."""
        found: dict[int, Seen] = {}
        for name in sorted(self._seen):
            found.setdefault(self._seen[name].category, self._seen[name])
        return {seen.sample_id: seen for seen in found.values()}

    def _gathered(self, seen: dict[str, Seen], categories: Sequence[str]) -> list[list[Tensor]]:
        """What all ranks have seen, by category, in the order of sample ids. A collective call."""
        everything: dict[str, Seen] = {}
        for theirs in gather_seen(seen, self.templates.here.device):
            everything |= theirs
        groups = by_category([everything[name] for name in sorted(everything)], categories)
        return [[entry.kept for entry in group] for group in groups]

    def _thinned(self, offsets: TemplateOffsets, seen: Seen) -> Seen:
        """A training cloud on its template, for the offsets."""
        template = self.templates.placing().templates[seen.category]
        placed = apply_pose(self._kept_pose(seen.kept, seen.sample_id, seen.category), seen.kept)
        return seen._replace(kept=offsets.thinned(placed[order_of(placed, self.protocol)], template.radius))

    def offset(self, placed: Float[Tensor, "N 3"], category: int) -> Float[Tensor, " N"]:
        """How far each point of a placed cloud lies from the training clouds, about 1 where it lies as they do.

        Raises:
            ValueError: the placement has no offsets.
        """
        if self.offsets is None:
            raise ValueError("make the placement with offsets")
        order = order_of(placed, self.protocol)
        found = self.offsets(placed[order], category, self.templates.placing().templates[category].radius)
        return torch.empty_like(found).index_copy_(0, order, found)

    def known(self, cloud: Float[Tensor, "N 3"], name: str, category: int | None) -> PlacedClouds:
        """A whole cloud on the template of its category. Its pose is kept: training clouds come again and again.

        Raises:
            ValueError: the category is None.
        """
        category = _required(category)
        template = self.templates.placing().templates[category]
        placed = apply_pose(self._kept_pose(cloud, name, category), cloud)
        thin = self.completion.thinned(placed, template)
        return PlacedClouds(
            PointCloudBatch.single(placed, name),
            PointCloudBatch.single(thin, name),
            [template_frame(template, cloud)],
            None,
        )

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
        return PlacedClouds(
            PointCloudBatch.pack(clouds, batch.sample_id),
            PointCloudBatch.pack(seen, batch.sample_id),
            frames,
            torch.stack(logits),
        )

    def _posed_by(self) -> list[nn.Module]:
        return [self.templates]

    def _kept_pose(self, cloud: Tensor, name: str, category: int) -> Tensor:
        template = self.templates.placing().templates[category]
        return self._poses(cloud, lambda: (self._pose(cloud, name, template),), category)[0]

    def _pose(self, cloud: Tensor, name: str, template: Template) -> Tensor:
        return torch.from_numpy(registered(template, cloud[order_of(cloud, self.protocol)], name).pose)


def make_placement(
    register: bool,
    complete: bool,
    protocol: str,
    hypotheses: int = RegistrationSettings.hypotheses,
    resolution: float | None = None,
    complete_gap: float = COMPLETE_GAP,
    offsets: TemplateOffsets | None = None,
) -> Placement | None:
    """None where clouds are not to be registered.

    Raises:
        InputError: open3d is missing; a number is out of range; `complete` without `register` or a resolution; or
            offsets without `register`.
    """
    check_range(1, inf, hypotheses=hypotheses)
    completion = make_completion(register, complete, protocol, resolution, complete_gap)
    if not register:
        if offsets is not None:
            raise InputError("offset_share: distances are from registered templates; set register to true")
        return None
    open3d("register")  # missed now, not after the first pass
    return Placement(completion, hypotheses, offsets)


def _required(category: int | None) -> int:
    if category is None:
        raise ValueError("Training clouds are registered by their category, and this batch has none.")
    return category
