"""What a checkpoint says of its training, held against what the configuration builds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from anomaly3d.errors import InputError
from anomaly3d.metrics.result import Thresholds
from anomaly3d.models.base import Detector


class Saved:
    """A checkpoint of `AnomalyModule`; those of older versions have neither settings, thresholds nor times.

    Args:
        path: its file, for messages.
        checkpoint: its content.

    Attributes:
        facts: what `AnomalyModule.on_save_checkpoint` wrote down.
        weights: the state of the module.

    Raises:
        InputError: anomaly3d did not write it.
    """

    def __init__(self, path: str, checkpoint: Mapping[str, Any]) -> None:
        if "anomaly3d" not in checkpoint:
            raise InputError(f"{path}: not written by anomaly3d; give a checkpoint that `anomaly3d fit` made")
        self.path = path
        self.facts: dict[str, Any] = checkpoint["anomaly3d"]
        self.weights: dict[str, Tensor] = checkpoint["state_dict"]

    @property
    def categories(self) -> list[str]:
        """The categories that it was trained on."""
        return self.facts["categories"]

    def check_detector(self, detector: Detector) -> None:
        """Raise InputError for a checkpoint of another detector, or of one that learned with other settings."""
        ours = type(detector).__name__
        if self.facts["detector"] != ours:
            raise InputError(
                f"{self.path}: holds a {self.facts['detector']}, but the configuration builds a {ours}; "
                "give the configuration it was trained with"
            )
        trained_with = self.facts.get("settings", {})
        for name, value in detector.fixed_settings().items():
            if name == "paper_version" and name not in trained_with and trained_with.get("protocol") == "paper":
                raise InputError(
                    f"{self.path}: of {ours} before its protocol paper was that of public code; train again"
                )
            if name in trained_with and trained_with[name] != value:
                raise InputError(
                    f"{self.path}: this {ours} was trained with {name}={trained_with[name]}, but the configuration "
                    f"says {name}={value}; give the configuration it was trained with (config.yaml in its log "
                    "folder), or train again"
                )

    def check_resumed(self, categories: Sequence[str], optimizer: Mapping[str, Any]) -> None:
        """Raise InputError where a training could not go on: with other categories, or another `optimizer`."""
        if self.categories != list(categories):
            raise InputError(
                f"{self.path}: a training on {', '.join(self.categories)} can't go on with {', '.join(categories)}; "
                "give data.categories as before, or train anew"
            )
        for name, value in self.facts.get("optimizer", {}).items():
            if value != optimizer[name]:
                raise InputError(
                    f"{self.path}: its training had model.{name}={value} and goes on with it, but the configuration "
                    f"says {optimizer[name]}; give the former, or train anew"
                )

    def warn_of_strangers(self, categories: Sequence[str]) -> None:
        """Tell users of categories that it has never seen."""
        strangers = [name for name in categories if name not in self.categories]
        if strangers:
            rank_zero_warn(
                f"{self.path}: trained on {', '.join(self.categories)}; it has never seen {', '.join(strangers)}, "
                "which data.categories can leave out"
            )

    def thresholds(self, detector: Detector) -> Thresholds | None:
        """Those that its last validation chose; None, with a warning, if the detector makes scores in another way."""
        chosen, chosen_with = self.facts.get("thresholds"), self.facts.get("scoring", {})
        scoring = detector.scoring_settings() if chosen_with else {}
        changed = [name for name, value in scoring.items() if name not in chosen_with or chosen_with[name] != value]
        if chosen and changed:
            warnings.warn(
                f"{self.path}: its thresholds were chosen with another {', '.join(changed)} and are not used; a "
                "training with these settings chooses others",
                stacklevel=2,
            )
        return Thresholds(**chosen) if chosen and not changed else None

    def check_weights(self, expected: Mapping[str, Tensor]) -> None:
        """Raise InputError unless its weights have the names and shapes of those `expected`."""
        wrong = [k for k in expected if k not in self.weights or self.weights[k].shape != expected[k].shape]
        wrong += [k for k in self.weights if k not in expected]
        if wrong:
            raise InputError(
                f"{self.path}: a {self.facts['detector']} with other settings ({len(wrong)} weights differ, the first: "
                f"{wrong[0]}); give the configuration it was trained with (config.yaml in its log folder)"
            )
