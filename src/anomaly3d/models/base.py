"""What every detector is: a torch module that gives a loss to train on and scores to test with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from torch import Tensor, nn

from anomaly3d.types import AnomalyPrediction, PointCloudBatch


class Detector(nn.Module, ABC):
    """Base of all detectors. Pure torch: no Lightning, no data set, no metric.

    Subclasses take their settings as keyword arguments (each one a config key) and build what depends on the
    training categories in `configure`.
    """

    categories: tuple[str, ...] = ()
    protocol: str = "strict"
    """`strict`, or `paper` where a detector makes its paper's literal choices; stands beside every result."""

    told_category: bool = False
    """Whether `score` is given `batch.category`: only where a method's published evaluation is told it (`paper`)."""

    def configure(self, categories: Sequence[str]) -> None:
        """Learn the names of the training categories; called before the optimizer is made.

        Layers whose size is the number of categories are built here, and anew at the next call: a checkpoint that is
        loaded brings its own categories. `batch.category` in `loss` indexes this list.
        """
        self.categories = tuple(categories)

    @property
    def learns(self) -> bool:
        """Whether the present pass over the training clouds may change weights."""
        return True

    def finish_pass(self) -> bool:
        """Told after the last batch of every pass over the training clouds; true where nothing is left to learn.

        A collective call: every rank makes it, so results may be gathered over ranks here.
        """
        return False

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """Give buffers whose size only training knows the size that they have in `state`, which is loaded next."""

    def fixed_settings(self) -> dict[str, Any]:
        """Settings that a checkpoint fixes: with others it would load, and what it holds would mean something else.

        By the names of the configuration, with plain values (a default of None resolved). A checkpoint carries them,
        and one with other values is refused; those that a layer's shape shows need not be here.
        """
        return {}

    def scoring_settings(self) -> dict[str, Any]:
        """How errors become scores, with plain values: thresholds that were chosen with others mean nothing."""
        scoring = vars(self).get("scoring")
        return asdict(scoring) if is_dataclass(scoring) and not isinstance(scoring, type) else {}

    @abstractmethod
    def loss(self, batch: PointCloudBatch) -> dict[str, Tensor]:
        """Named scalar loss terms of a training batch; `"loss"` is the one to minimise, the others are logged."""

    @abstractmethod
    def score(self, batch: PointCloudBatch) -> AnomalyPrediction:
        """Scores for every point of every cloud; `batch` comes without truth (`told_category` apart). Deterministic."""
