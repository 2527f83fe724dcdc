"""From predictions and truth to the metrics of every category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torchmetrics.utilities import rank_zero_warn

from anomaly3d.errors import InputError
from anomaly3d.metrics.functional import all_finite, ranking_metrics
from anomaly3d.metrics.records import CloudRecords, Clouds, stable_id
from anomaly3d.metrics.result import CategoryResult, EvaluationResult
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


class Evaluator(nn.Module):
    """Object and point level AUROC and AUPR per category, with their macro mean.

    Object metrics rank the clouds of a category by object score. Point metrics pool all points of all its clouds, the
    normal ones included. Scores are compared as float32 and never transformed. Under distributed data parallel every
    process calls `compute` and gets the result over all clouds, each counted once.

    States take 5 bytes per point and live on the module's device; `reset` frees them.

    Args:
        category_names: the data module's categories, which `batch.category` indexes.
        training_categories: the names that `prediction.category_logits` is over; the same as `category_names` if
            not given.
    """

    def __init__(self, category_names: Sequence[str], training_categories: Sequence[str] | None = None) -> None:
        super().__init__()
        self.category_names = tuple(category_names)
        self.training_categories = self.category_names if training_categories is None else tuple(training_categories)
        self.records = CloudRecords()
        self._warned: set[tuple[str, str]] = set()

    @torch.no_grad()
    def update(self, prediction: AnomalyPrediction, batch: PointCloudBatch) -> None:
        """Add the clouds of one batch; without a mask they count for the object metrics only.

        Raises:
            InputError: the batch has no labels, or no categories although there are several.
            ValueError: prediction and batch do not fit, or a score is NaN or infinite.
        """
        if batch.label is None:
            raise InputError(
                f"{batch.sample_id[0]}: this data has no ground truth, so there is nothing to evaluate; "
                "use `predict` to score it"
            )
        category = self._category(batch)
        _check_scores(prediction, batch)
        points = batch.offsets.diff()
        truth = {} if batch.mask is None else {"point_score": prediction.point_scores, "point_mask": batch.mask}
        self.records.update(
            cloud_id=torch.tensor([stable_id(name) for name in batch.sample_id], dtype=torch.int64),
            category=category,
            label=batch.label,
            points=points,
            points_with_truth=points if truth else torch.zeros_like(points),
            category_hit=self._category_hit(prediction, category),
            object_score=prediction.object_scores,
            **truth,
        )

    def compute(self) -> EvaluationResult:
        """Metrics over all clouds seen since `reset`, gathered over processes.

        A metric is NaN, and a warning names the category once, where a category has no cloud, only normal or only
        anomalous ones, or (point metrics) clouds without mask.

        Raises:
            InputError: two different clouds have the same sample id.
        """
        clouds = self.records.clouds()
        first = clouds.first_occurrence()
        self._check_repeats(clouds, first)
        keep = (first == torch.arange(len(first), device=first.device)).nonzero().flatten()
        # Category by category, so that no second copy of all points is made.
        of_category = clouds.category[keep]
        outcomes = [
            _category_result(name, clouds.select(keep[of_category == index]))
            for index, name in enumerate(self.category_names)
        ]
        rows = tuple(row for row, _ in outcomes)
        hit = clouds.category_hit[keep]
        hit = hit[hit >= 0]
        return EvaluationResult(
            rows=rows,
            notes=self._notes({row.category: reasons for row, reasons in outcomes}),
            category_accuracy=hit.double().mean().item() if len(hit) else None,
            repeats=len(clouds) - len(keep),
        )

    def reset(self) -> None:
        """Forget all clouds."""
        self.records.reset()

    def _category(self, batch: PointCloudBatch) -> Int[Tensor, " B"]:
        known = len(self.category_names)
        if batch.category is None:
            if known > 1:
                raise InputError(
                    f"{batch.sample_id[0]}: the batch does not say which of the {known} categories its clouds are of; "
                    "evaluate one category at a time"
                )
            return torch.zeros(len(batch), dtype=torch.int64)
        if not ((batch.category >= 0) & (batch.category < known)).all():
            raise ValueError(f"batch.category {batch.category.tolist()} is out of range for {known} categories")
        return batch.category

    def _category_hit(self, prediction: AnomalyPrediction, category: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        logits = prediction.category_logits
        if logits is None:
            return torch.full_like(category, -1)
        if logits.shape[1] != len(self.training_categories):
            raise ValueError(
                f"category_logits are over {logits.shape[1]} categories, the evaluator knows "
                f"{len(self.training_categories)} training categories"
            )
        position = {name: index for index, name in enumerate(self.training_categories)}
        truth = torch.tensor([position.get(name, -1) for name in self.category_names], device=category.device)[category]
        return torch.where(truth < 0, -1, (logits.argmax(dim=1).to(truth.device) == truth).long())

    def _check_repeats(self, clouds: Clouds, first: Int[Tensor, " C"]) -> None:
        for field in ("category", "label", "points"):
            values = getattr(clouds, field)
            differs = values != values[first]
            if differs.any():
                category = self.category_names[int(clouds.category[first][differs][0])]
                raise InputError(
                    f"category {category!r}: two clouds that differ in {field} have the same sample id, so one of them "
                    "would not be counted; give every file of the data set its own name"
                )

    def _notes(self, reasons: dict[str, dict[str, str]]) -> tuple[str, ...]:
        """One sentence per undefined metric pair and reason; warns of categories not yet warned of."""
        categories: dict[tuple[str, str], list[str]] = defaultdict(list)
        for category, undefined in reasons.items():
            for metrics, reason in undefined.items():
                categories[metrics, reason].append(category)
        notes = []
        for (metrics, reason), names in categories.items():
            notes.append(f"{metrics} undefined and left out of the mean for {', '.join(names)}: {reason}")
            pairs = {(metrics, name) for name in names}
            if pairs - self._warned:
                rank_zero_warn(notes[-1], stacklevel=3)
                self._warned |= pairs
        return tuple(notes)


def _check_scores(prediction: AnomalyPrediction, batch: PointCloudBatch) -> None:
    if prediction.object_scores.shape != (len(batch),) or prediction.point_scores.shape != (len(batch.xyz),):
        raise ValueError(
            f"{len(batch)} clouds with {len(batch.xyz)} points need as many scores, got "
            f"{tuple(prediction.object_scores.shape)} and {tuple(prediction.point_scores.shape)}"
        )
    object_scores, point_scores = prediction.object_scores.float(), prediction.point_scores.float()
    if all_finite(object_scores) and all_finite(point_scores):
        return
    pairs = zip(batch.sample_id, object_scores, batch.split(point_scores), strict=True)
    bad = [name for name, score, points in pairs if not (score.isfinite() and all_finite(points))]
    raise ValueError(f"scores that are NaN or infinite cannot be ranked; clouds: {', '.join(bad)}")


def _category_result(name: str, clouds: Clouds) -> tuple[CategoryResult, dict[str, str]]:
    """Metrics of one category's clouds, and for each undefined pair of metrics the reason."""
    label = clouds.label.bool()
    of_objects = ranking_metrics(clouds.object_score, label)
    # Without the truth of every cloud, the pool of points would not be the category's.
    complete = bool((clouds.points_with_truth == clouds.points).all())
    pool = slice(None if complete else 0)
    mask = clouds.point_mask[pool]
    of_points = ranking_metrics(clouds.point_score[pool], mask)
    undefined = {
        "O-AUROC and O-AUPR": _one_class(label, "cloud"),
        "P-AUROC and P-AUPR": _one_class(mask, "point") if complete else "not every cloud has a point mask",
    }
    row = CategoryResult(
        category=name,
        o_auroc=of_objects.auroc.item(),
        o_aupr=of_objects.average_precision.item(),
        p_auroc=of_points.auroc.item(),
        p_aupr=of_points.average_precision.item(),
        clouds=len(clouds),
        anomalous_clouds=int(label.sum()),
        points=int(clouds.points.sum()),
    )
    return row, {metrics: reason for metrics, reason in undefined.items() if reason}


def _one_class(truth: Tensor, what: str) -> str | None:
    """Why a ranking metric does not exist for this truth, or None."""
    if not len(truth):
        return f"no {what}"
    if truth.all():
        return f"every {what} is anomalous"
    return None if truth.any() else f"every {what} is normal"
