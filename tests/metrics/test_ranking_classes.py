import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_regions import naive_aupro
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch.multiprocessing.spawn import spawn

from anomaly3d.errors import InputError
from anomaly3d.metrics import classification
from anomaly3d.metrics.classification import AUPRO, AUROC, AveragePrecision, F1Max, PerCloudAUROC


def best_f1(target: np.ndarray, scores: np.ndarray) -> float:
    return max(float(f1_score(target, scores >= threshold)) for threshold in np.unique(scores))


REFERENCE = {AUROC: roc_auc_score, AveragePrecision: average_precision_score, F1Max: best_f1}


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_updates_of_different_ranges_are_ranked_together(metric_class):
    # The second update leaves [0, 1]: torchmetrics' own metrics would pass it, and only it, through a sigmoid.
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(50, generator=generator), 30 * torch.randn(70, generator=generator)]
    truth = [torch.rand(len(part), generator=generator) < 0.3 for part in parts]
    metric = metric_class()
    for part, target in zip(parts, truth, strict=True):
        metric.update(part, target)
    expected = REFERENCE[metric_class](torch.cat(truth).numpy(), torch.cat(parts).numpy())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_one_class_is_nan_and_reset_forgets(metric_class):
    metric = metric_class()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))
    assert metric.compute().isnan()
    metric.update(torch.tensor([3.0]), torch.tensor([1]))
    assert metric.compute() == 1
    metric.reset()
    metric.update(torch.tensor([3.0, 4.0]), torch.tensor([1, 0]))
    assert metric.compute() < 1


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_bfloat16_is_ranked_as_it_is(metric_class):
    scores = torch.randn(200, generator=torch.Generator().manual_seed(1)).bfloat16()
    target = torch.arange(200) % 3 == 0
    metric = metric_class()
    metric.update(scores, target)
    expected = REFERENCE[metric_class](target.numpy(), scores.float().numpy())
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_float64_is_ranked_as_it_is(metric_class):
    metric = metric_class()
    metric.update(torch.tensor([1.0, 1e300], dtype=torch.float64), torch.tensor([0, 1]))
    metric.update(torch.tensor([1.0 + 1e-12], dtype=torch.float64), torch.tensor([1]))
    assert metric.compute() == 1


@pytest.mark.parametrize("metric_class", REFERENCE)
def test_bad_updates_are_refused(metric_class):
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric_class().update(torch.tensor([1.0, float("nan")]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="floating point"):
        metric_class().update(torch.tensor([1, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="0 and 1 only"):
        metric_class().update(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]))


def clouds(seed: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Scores, truth and weights of five clouds with two regions each; the last has no anomalous point."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for index in range(5):
        target = torch.arange(60) % 6 == 0 if index < 4 else torch.zeros(60, dtype=torch.bool)
        scores = (torch.randn(60, generator=generator) + target).round(decimals=1)
        parts.append((scores, target, torch.tensor([1 / 3] * 3 + [1 / 7] * 7, dtype=torch.float64)[: target.sum()]))
    return parts


def expected_of_clouds(parts) -> tuple[float, float]:
    regions = [r.numpy() for scores, target, _ in parts if target.any() for r in scores[target].split([3, 7])]
    normal = torch.cat([scores[~target] for scores, target, _ in parts]).numpy()
    alone = [roc_auc_score(target.numpy(), scores.numpy()) for scores, target, _ in parts if target.any()]
    return naive_aupro(regions, normal), float(np.mean(alone))


def test_regions_and_single_clouds_equal_loops():
    aupro, per_cloud = AUPRO(), PerCloudAUROC()
    assert aupro.compute().isnan()
    assert per_cloud.compute().isnan()
    for scores, target, overlap in clouds(0):
        aupro.update(scores, target, overlap)
        per_cloud.update(scores, target)
    assert (aupro.compute().item(), per_cloud.compute().item()) == pytest.approx(expected_of_clouds(clouds(0)))
    with pytest.raises(ValueError, match="overlap"):
        aupro.update(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]), torch.ones(1))
    assert len(aupro.concatenated("scores")) == 300
    with pytest.raises(InputError, match="limit"):
        AUPRO(limit=0)


def worker(rank: int, rendezvous: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    metrics = AUPRO(), PerCloudAUROC(), F1Max()
    for scores, target, overlap in clouds(1)[rank * 4 : 4 + rank * 4]:
        metrics[0].update(scores, target, overlap)
        metrics[1].update(scores, target)
        metrics[2].update(scores, target)
    values = [metric.compute().item() for metric in metrics]
    Path(out, f"{rank}.txt").write_text(" ".join(map(repr, values)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    spawn(worker, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    one, other = ([float(word) for word in (tmp_path / f"{rank}.txt").read_text().split()] for rank in range(2))
    scores, target = (torch.cat(column).numpy() for column in list(zip(*clouds(1), strict=True))[:2])
    assert one == other
    assert one == pytest.approx([*expected_of_clouds(clouds(1)), best_f1(target, scores)])


def test_docstring_examples():
    outcome = doctest.testmod(classification)
    assert outcome.attempted == 23
    assert outcome.failed == 0
