"""Templates of every category in one pose, and which of them a cloud is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anomaly3d.models.components.registration import Registration, RegistrationSettings, Template
from anomaly3d.models.components.seen import Seen
from anomaly3d.ops.sphere import radius_about_mean
from anomaly3d.ops.stages import stage

_LARGER = 1.5  # radii of a template; a cloud that is larger than that is none of its scans


class Placed(NamedTuple):
    """A cloud on the template of the category that fits it best."""

    category: int
    registration: Registration
    logits: Float[Tensor, " C"]  # minus the residuals, in units of the cloud's radius


class CategoryTemplates:
    """One template per category; a cloud belongs to the one that leaves the smallest residual [ours].

    Labels are never asked. Residuals are distances from the cloud to the template alone: a scan from one side
    covers a part of it.
    """

    def __init__(self, templates: Sequence[Template]) -> None:
        self.templates = list(templates)

    @stage("registration")
    def place(self, xyz: Float[Tensor, "N 3"]) -> Placed:
        """The best category and pose.

        Other poses than the file's are tried only where the likeliest category does not fit as the cloud stands,
        likelier categories first, until one does; templates of much smaller things are left out, unless all are.
        """
        radius = radius_about_mean(xyz)
        found = [template.as_it_stands(xyz) for template in self.templates]
        likely = sorted(range(len(found)), key=lambda i: found[i].residual)
        if not self.templates[likely[0]].accepts(found[likely[0]], xyz):
            for i in [i for i in likely if radius <= _LARGER * self.templates[i].radius] or likely:
                found[i] = self.templates[i].search(xyz, found[i])
                if self.templates[i].accepts(found[i], xyz):
                    break
        logits = torch.tensor([-r.residual / radius for r in found], device=xyz.device)
        category = int(logits.argmax())
        return Placed(category, found[category], logits)


def aligned(clouds: Sequence[Seen], settings: RegistrationSettings) -> list[Seen]:
    """The clouds of a category in the pose of the first; one that does not fit is warned of and kept."""
    first = Template(clouds[0].kept, settings)
    placed = (
        cloud._replace(kept=registered(first, cloud.kept, cloud.sample_id).apply(cloud.kept)) for cloud in clouds[1:]
    )
    return [clouds[0], *placed]


def registered(template: Template, cloud: Float[Tensor, "N 3"], name: str) -> Registration:
    """A training cloud on its category's template, with a warning where it does not fit."""
    found = template.register(cloud)
    if not template.accepts(found, cloud):
        warnings.warn(
            f"{name}: does not fit the template of its category well; is it another part, or cut off?", stacklevel=2
        )
    return found
