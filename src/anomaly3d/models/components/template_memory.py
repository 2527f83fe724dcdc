"""The templates that a detector registers clouds to, as part of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anomaly3d.errors import NotReady
from anomaly3d.models.components.memory import pack, unpack
from anomaly3d.models.components.registration import RegistrationSettings, Template
from anomaly3d.models.components.sized_buffers import make_room_first, resize_buffers
from anomaly3d.models.components.templates import CategoryTemplates


class TemplateMemory(nn.Module):
    """One template per category, empty until `keep`.

    Args:
        hypotheses: triples of correspondences that RANSAC draws.
    """

    points: Float[Tensor, "N 3"] | None
    offsets: Int[Tensor, "C+1"] | None
    here: Tensor

    def __init__(self, hypotheses: int) -> None:
        super().__init__()
        self.settings = RegistrationSettings(hypotheses=hypotheses)
        self.register_buffer("points", None)
        self.register_buffer("offsets", None)
        self.register_buffer("here", torch.zeros(()), persistent=False)  # knows the device while the others are empty
        self._placing: CategoryTemplates | None = None
        self.register_load_state_dict_pre_hook(make_room_first)

    @property
    def empty(self) -> bool:
        """Whether there are no templates yet."""
        return self.points is None

    def keep(self, templates: Sequence[Float[Tensor, "n 3"]]) -> None:
        """The template of each category."""
        self.points, self.offsets = pack(templates)
        self._placing = None

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Buffers of the size that they have in `state`; the templates that are loaded next replace those in use."""
        resize_buffers(self, state, self.here.device)
        self._placing = None

    def placing(self) -> CategoryTemplates:
        """The templates, ready to register to.

        Raises:
            InputError: there are none.
        """
        if self.points is None or self.offsets is None:
            raise NotReady(
                "The detector has seen no training clouds; run `anomaly3d fit`, and give its checkpoint: it registers "
                "to templates that come with it"
            )
        if self._placing is None or self._placing.templates[0].xyz.device != self.points.device:
            parts = unpack(self.points, self.offsets)
            self._placing = CategoryTemplates([Template(part, self.settings) for part in parts])
        return self._placing
