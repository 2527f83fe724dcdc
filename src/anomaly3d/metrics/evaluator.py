"""From predictions and truth to the metrics of every category."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics.utilities import rank_zero_warn

from anomaly3d.errors import InputError
from anomaly3d.metrics.binned import binned_f1_max, tied_bins
from anomaly3d.metrics.binned_classes import ScoreHistograms
from anomaly3d.metrics.bootstrap import REPLICATES
from anomaly3d.metrics.category_metrics import PointPool, category_result
from anomaly3d.metrics.cloud_summary import NOTHING, CloudSummary, summarise
from anomaly3d.metrics.functional import all_finite
from anomaly3d.metrics.records import CloudPoints, CloudRecords, Clouds, PointLists, stable_id
from anomaly3d.metrics.result import EvaluationResult, Thresholds
from anomaly3d.types import AnomalyPrediction, PointCloudBatch

_NO_POINTS: CloudPoints = (torch.empty(0), torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.float64))


class Evaluator(nn.Module):
    """Object and point level metrics per category, with their macro mean.

    Object metrics rank the clouds of a category by object score. Point metrics pool all points of all its clouds, the
    normal ones included. Scores are compared as float32 and never transformed. Under distributed data parallel every
    process calls `compute` and gets the result over all clouds, each counted once.

    Points go into histograms of fixed size (64 MB for all categories); the bounds on the error stand in the result. An
    exact evaluation keeps and sorts them instead (5 bytes per point, gathered over processes, and about 50 bytes per
    point of a category while it is computed).

    A distributed sampler pads its shares with repeated clouds. A cloud that a process has met is not counted again. One
    that two processes met is dropped once by an exact evaluation; a sum of histograms cannot be freed of it, so
    `compute` raises, and the data module's test loader shares clouds out without repeats [ours].

    Args:
        category_names: the data module's categories, which `batch.category` indexes.
        training_categories: the names that `prediction.category_logits` is over; the same as `category_names` if
            not given.
        exact: keep the points instead of counting them.
        thresholds: of the operating point, chosen without test data; without them it is left out.
        replicates: of the bootstrap over clouds; 0 leaves the confidence intervals out.
        sources: the scan that a cloud derives from, by sample id, for the bootstrap: clouds of one scan are drawn
            together. A cloud that is not in it has its own.
    """

    def __init__(
        self,
        category_names: Sequence[str],
        training_categories: Sequence[str] | None = None,
        exact: bool = False,
        thresholds: Thresholds | None = None,
        replicates: int = REPLICATES,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.category_names = tuple(category_names)
        self.training_categories = self.category_names if training_categories is None else tuple(training_categories)
        self.thresholds = thresholds
        self.replicates = replicates
        self.sources = sources or {}
        self.records = CloudRecords()
        self.points = PointLists() if exact else ScoreHistograms(len(self.category_names), compute_with_cache=False)
        self._met: set[int] = set()
        self._warned: set[tuple[str, str]] = set()

    @torch.no_grad()
    def update(self, prediction: AnomalyPrediction, batch: PointCloudBatch) -> None:
        """Add the clouds of one batch; those without a mask count for the object metrics only.

        Raises:
            InputError: the batch has no labels or others than 0 and 1, or no categories although there are several.
            ValueError: prediction and batch do not fit, or a score is NaN or infinite.
        """
        if batch.label is None:
            raise InputError(
                f"{batch.sample_id[0]}: this data has no ground truth, so there is nothing to evaluate; "
                "use `predict` to score it"
            )
        _check_labels(batch.label, batch.sample_id)
        category = self._category(batch)
        _check_scores(prediction, batch)
        ids = [stable_id(name) for name in batch.sample_id]
        again = [cloud_id in self._met or cloud_id in ids[:index] for index, cloud_id in enumerate(ids)]
        self._met.update(ids)
        points = batch.offsets.diff()
        masked = torch.full((len(batch),), batch.mask is not None) if batch.masked is None else batch.masked.cpu()
        summaries = self._add_clouds(prediction, batch, category, masked.tolist(), again)
        with_truth = points * masked.to(points.device)
        self.records.update(
            cloud_id=torch.tensor(ids, dtype=torch.int64),
            source=torch.tensor([stable_id(self.sources.get(name, name)) for name in batch.sample_id]),
            category=category,
            label=batch.label,
            points=points,
            points_with_truth=with_truth,
            anomalous_points=torch.tensor([len(summary.overlap) for summary in summaries]),
            pooled=torch.tensor([not repeat for repeat in again]) & (with_truth > 0).cpu(),
            category_hit=self._category_hit(prediction, category),
            object_score=prediction.object_scores,
            regions=torch.tensor([summary.regions for summary in summaries]),
            auroc=torch.tensor([summary.auroc for summary in summaries], dtype=torch.float64),
            true_alarms=torch.tensor([summary.true_alarms for summary in summaries]),
            false_alarms=torch.tensor([summary.false_alarms for summary in summaries]),
            sketches=torch.from_numpy(np.stack([summary.sketches for summary in summaries])).flatten(),
        )

    def compute(self) -> EvaluationResult:
        """Metrics over all clouds seen since `reset`, gathered over processes.

        A metric is NaN, and a warning names the category once, where a category has no cloud, only normal or only
        anomalous ones, or (point metrics) clouds without mask.

        Raises:
            InputError: two different clouds have the same sample id, or two processes were given the same cloud and
                their histograms count it twice.
        """
        clouds = self.records.clouds()
        first = clouds.first_occurrence()
        self._check_repeats(clouds, first)
        keep = (first == torch.arange(len(first), device=first.device)).nonzero().flatten()
        of_category = [keep[clouds.category[keep] == index] for index in range(len(self.category_names))]
        best = None
        if isinstance(self.points, PointLists):
            parts = self.points.split(clouds)
            # Category by category, so that no second copy of all points is made.
            pools = (_sorted_pool([parts[i] for i in chosen.tolist()]) for chosen in of_category)
            best = _best_thresholds(clouds.select(keep), [parts[i] for i in keep.tolist()])
        else:
            pools = self._histogram_pools(clouds, keep)
        outcomes = [
            category_result(name, clouds.select(chosen), pool, self.thresholds, self.replicates)
            for name, chosen, pool in zip(self.category_names, of_category, pools, strict=True)
        ]
        rows = tuple(row for row, _ in outcomes)
        hit = clouds.category_hit[keep]
        hit = hit[hit >= 0]
        return EvaluationResult(
            rows=rows,
            notes=self._notes({row.category: reasons for row, reasons in outcomes}),
            category_accuracy=hit.double().mean().item() if len(hit) and len(self.training_categories) > 1 else None,
            repeats=len(clouds) - len(keep),
            best_thresholds=best,
        )

    def reset(self) -> None:
        """Forget all clouds."""
        self.records.reset()
        self.points.reset()
        self._met.clear()

    def _add_clouds(
        self,
        prediction: AnomalyPrediction,
        batch: PointCloudBatch,
        category: Int[Tensor, " B"],
        masked: list[bool],
        again: list[bool],
    ) -> list[CloudSummary]:
        """Pool the points of the clouds that have a truth; what is kept of each besides."""
        threshold = None if self.thresholds is None else self.thresholds.point
        scores = batch.split(prediction.point_scores.float())
        masks = [None] * len(batch) if batch.mask is None else batch.split(batch.mask)
        clouds = zip(scores, masks, batch.clouds(), category.tolist(), masked, again, strict=True)
        summaries = []
        for score, mask, xyz, index, known, repeat in clouds:
            if mask is None or not known:
                summaries.append(NOTHING)
                self._add_points(score[:0], torch.empty(0, dtype=torch.bool), NOTHING, index, repeat)
                continue
            summaries.append(summarise(score.cpu().numpy(), mask.cpu().numpy(), xyz.cpu().numpy(), threshold))
            self._add_points(score, mask, summaries[-1], index, repeat)
        return summaries

    def _add_points(
        self,
        scores: Float[Tensor, " N"],
        mask: Bool[Tensor, " N"],
        summary: CloudSummary,
        category: int,
        repeat: bool,
    ) -> None:
        overlap = torch.from_numpy(summary.overlap)
        if isinstance(self.points, PointLists):
            self.points.update(score=scores, mask=mask, overlap=overlap)
        elif not repeat:
            self.points.update(scores, mask, overlap, category=category)

    def _histogram_pools(self, clouds: Clouds, keep: Int[Tensor, " c"]) -> list[PointPool]:
        assert isinstance(self.points, ScoreHistograms)
        states = self.points.compute()
        twice = int(clouds.pooled.sum()) - int((clouds.points_with_truth[keep] > 0).sum())
        if twice:
            raise InputError(
                f"{twice} test clouds were given to more than one process, whose histograms count them twice; test on "
                "one device, or set model.exact_metrics"
            )
        return [
            PointPool(states.positives[i], states.negatives[i], states.overlap[i], grid.edge, exact=False)
            for i, grid in enumerate(states.grids)
        ]

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


def _check_labels(label: Int[Tensor, " B"], sample_id: Sequence[str]) -> None:
    bad = [name for name, value in zip(sample_id, label.tolist(), strict=True) if value not in (0, 1)]
    if bad:
        raise InputError(f"labels must be 0 (normal) or 1 (anomalous); mend those of the clouds: {', '.join(bad)}")


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


def _sorted_pool(parts: list[CloudPoints]) -> PointPool:
    """Of the points of some clouds, a bin for each distinct score."""
    scores, mask, overlap = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else _NO_POINTS
    bins = tied_bins(scores, mask, overlap)
    return PointPool(bins.positives, bins.negatives, bins.weight, lambda index: bins.scores[index].item(), True)


def _best_thresholds(clouds: Clouds, parts: list[CloudPoints]) -> Thresholds | None:
    """Thresholds of the largest F1 over the clouds and the points of all categories; None where one is undefined."""
    objects, points = tied_bins(clouds.object_score, clouds.label), _sorted_pool(parts)
    best = [binned_f1_max(bins.positives, bins.negatives) for bins in (objects, points)]
    if any(one.value.isnan() for one in best):
        return None
    return Thresholds(objects.scores[best[0].bin].item(), points.edge(int(best[1].bin)))
