"""Bank detectors that register a cloud to a template of its category first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.components.registration import Template
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.seen import Seen, by_category
from anomaly3d.models.components.sized_buffers import part_of
from anomaly3d.models.components.template_memory import TemplateMemory
from anomaly3d.models.components.templates import aligned


class OnTemplate(NamedTuple):
    """A cloud in the pose of the template that it fits best."""

    xyz: Float[Tensor, "N 3"]
    template: Template
    category: int
    logits: Float[Tensor, " C"]  # as in `Placed`


class RegisteredBankDetector(BankDetector):
    """A `BankDetector` that keeps one template per category.

    Args:
        hypotheses: triples of correspondences that RANSAC draws.
        protocol: as in `BankDetector`.
        memory_gb: as in `BankDetector`.
    """

    def __init__(self, hypotheses: int, protocol: Protocol, memory_gb: float) -> None:
        super().__init__(protocol, memory_gb)
        check_range(1, inf, hypotheses=hypotheses)
        self.templates = TemplateMemory(hypotheses)
        self.settings = self.templates.settings

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """As in `BankDetector`, and for the templates."""
        super().make_room(state)
        self.templates.make_room(part_of(state, "templates."))

    def scoring_settings(self) -> dict[str, Any]:
        """And how many poses are tried."""
        return super().scoring_settings() | {"hypotheses": self.settings.hypotheses}

    def aligned_groups(self, seen: Sequence[Seen]) -> Iterator[tuple[Template, list[Seen]]]:
        """For `build`: keep the first cloud of each category as its template; each, with the clouds in its pose.

        Clouds are registered as they are asked for, so that only one category's lie here twice.

        Raises:
            InputError: nothing was seen of a category.
        """
        groups = by_category(seen, self.categories)
        self.templates.keep([group[0].kept for group in groups])
        placed = (aligned(group, self.settings) for group in groups)
        return zip(self.templates.placing().templates, placed, strict=True)

    def placed(self, cloud: Float[Tensor, "N 3"]) -> OnTemplate:
        """A cloud that is scored, on the template of the category that fits it best."""
        placing = self.templates.placing()
        category, registration, logits = placing.place(cloud)
        return OnTemplate(registration.apply(cloud), placing.templates[category], category, logits)
