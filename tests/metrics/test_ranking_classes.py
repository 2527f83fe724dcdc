import doctest

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.metrics import classification
from anomaly3d.metrics.classification import AUROC, AveragePrecision

REFERENCE = {AUROC: roc_auc_score, AveragePrecision: average_precision_score}


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


def test_docstring_examples():
    outcome = doctest.testmod(classification)
    assert outcome.attempted == 10
    assert outcome.failed == 0
