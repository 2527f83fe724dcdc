"""Bank detectors that register a cloud to a template of its category first."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from torch import Tensor

from anomaly3d.errors import check_range
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.sized_buffers import part_of
from anomaly3d.models.components.template_memory import TemplateMemory
from anomaly3d.models.components.templates import CategoryTemplates


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

    def placing(self) -> CategoryTemplates:
        """The templates, ready to register to."""
        return self.templates.placing()
