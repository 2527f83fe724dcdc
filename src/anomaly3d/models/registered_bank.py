"""Bank detectors that register a cloud to a template of its category first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from anomaly3d.models.bank import BankDetector
from anomaly3d.models.components.memory import pack, unpack
from anomaly3d.models.components.registration import RegistrationSettings, Template
from anomaly3d.models.components.scoring import Protocol
from anomaly3d.models.components.templates import CategoryTemplates


class RegisteredBankDetector(BankDetector):
    """A `BankDetector` that keeps one template per category.

    Args:
        hypotheses: triples of correspondences that RANSAC draws.
        protocol: as in `BankDetector`.
        memory_gb: as in `BankDetector`.
    """

    templates: Float[Tensor, "N 3"]
    template_offsets: Int[Tensor, "C+1"]

    def __init__(self, hypotheses: int, protocol: Protocol, memory_gb: float) -> None:
        super().__init__(protocol, memory_gb)
        self.settings = RegistrationSettings(hypotheses=hypotheses)
        self.register_buffer("templates", None)
        self.register_buffer("template_offsets", None)
        self._placing: CategoryTemplates | None = None

    def keep_templates(self, templates: Sequence[Float[Tensor, "n 3"]]) -> None:
        """The template of each category."""
        self.templates, self.template_offsets = pack(templates)
        self._placing = None

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """As in `BankDetector`; the templates that are loaded next replace those in use."""
        super().make_room(state)
        self._placing = None

    def placing(self) -> CategoryTemplates:
        """The templates, ready to register to."""
        if self._placing is None:
            parts = unpack(self.templates, self.template_offsets)
            self._placing = CategoryTemplates([Template(part, self.settings) for part in parts])
        return self._placing
