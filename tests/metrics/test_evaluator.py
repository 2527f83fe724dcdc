import math
import warnings
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from evaluator_cases import NAMES, assert_equals_naive, evaluate, make_batch, make_clouds, naive_row
from sklearn.metrics import f1_score, precision_recall_fscore_support

from anomaly3d.errors import InputError
from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.metrics.records import stable_id
from anomaly3d.metrics.result import METRICS, POINT_METRICS, Thresholds
from anomaly3d.types import AnomalyPrediction, PointCloudBatch


@pytest.mark.parametrize("exact", [True, False])  # the scores are integers, of which each has a bin of its own
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_equals_a_loop_over_categories_with_sklearn(batch_size, exact):
    clouds = make_clouds()
    result = evaluate(clouds, batch_size, exact)
    assert_equals_naive(result, clouds)
    rows = [naive_row(clouds, index) for index in range(len(NAMES))]
    assert result.mean == pytest.approx({m: np.mean([row[m] for row in rows]) for m in METRICS})
    assert result.notes == ()
    assert result.category_accuracy is None


def test_frame_has_a_fixed_column_order():
    columns = ["category", "o_auroc", "o_aupr", "p_auroc", "p_aupr", "aupro", "clouds", "anomalous_clouds", "points"]
    frame = evaluate(make_clouds()).to_frame()
    assert list(frame.columns)[: len(columns)] == columns
    assert list(frame.category) == list(NAMES)


def test_order_of_clouds_and_of_points_changes_nothing():
    clouds = make_clouds()
    rng = np.random.default_rng(5)
    shuffled = []
    for index in rng.permutation(len(clouds)):
        cloud = clouds[index]
        order = torch.from_numpy(rng.permutation(len(cloud["mask"])))
        shuffled.append({**cloud, **{k: cloud[k][order] for k in ("xyz", "mask", "point_scores")}})
    for one, other in zip(evaluate(shuffled, replicates=50).rows, evaluate(clouds, replicates=50).rows, strict=True):
        assert asdict(one) == pytest.approx(asdict(other), abs=1e-12, nan_ok=True)


def assert_same_rows(result, other):
    pd.testing.assert_frame_equal(result.to_frame(), other.to_frame(), check_exact=True)  # NaN equals NaN


@pytest.mark.parametrize("exact", [True, False])
def test_repeated_clouds_count_once(exact):
    clouds = make_clouds()
    once, twice = (evaluate(given, exact=exact) for given in (clouds, [*clouds, *clouds[3:12], clouds[0]]))
    assert_same_rows(twice, once)
    assert (once.repeats, twice.repeats) == (0, 10)


def test_different_clouds_with_one_id_are_refused():
    clouds = make_clouds()
    impostor = {**clouds[0], "label": 1 - clouds[0]["label"]}
    with pytest.raises(InputError, match=r"category 'cup'.*label.*same sample id"):
        evaluate([*clouds, impostor])


def test_without_labels_there_is_nothing_to_evaluate():
    prediction, batch = make_batch(make_clouds(3))
    with pytest.raises(InputError, match=r"cup/test/000.*no ground truth.*predict"):
        Evaluator(NAMES).update(prediction, batch.without_truth())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [2, -1])
@pytest.mark.parametrize("mask", [True, False])
def test_labels_other_than_0_and_1_are_refused(exact, bad, mask):
    clouds = make_clouds(3)
    clouds[1]["label"] = bad
    with pytest.raises(InputError, match=r"labels must be 0 \(normal\) or 1 \(anomalous\).*: chair/test/001$"):
        Evaluator(NAMES, exact=exact).update(*make_batch(clouds, mask=mask))


def test_without_masks_only_object_metrics():
    clouds = make_clouds()
    with pytest.warns(
        UserWarning, match=r"P-AUROC, P-AUPR and AUPRO undefined.*cup, chair, plier.*point mask"
    ) as record:
        result = evaluate(clouds, mask=False)
    assert len(record) == 1
    for index, row in enumerate(result.rows):
        assert row.o_auroc == pytest.approx(naive_row(clouds, index)["o_auroc"])
        assert row.points == naive_row(clouds, index)["points"]
        assert math.isnan(row.p_auroc)
    assert math.isnan(result.mean["p_auroc"])
    assert result.undefined["p_aupr"] == NAMES
    assert result.undefined["o_aupr"] == ()


def test_a_category_with_some_masks_has_no_point_metrics():
    clouds = make_clouds()
    cup = [c for c in clouds if c["category"] == 0]
    evaluator = Evaluator(NAMES)
    evaluator.update(*make_batch([c for c in clouds if c not in cup[:1]]))
    evaluator.update(*make_batch(cup[:1], mask=False))
    with pytest.warns(UserWarning, match="for cup: not every cloud has a point mask"):
        rows = evaluator.compute().rows
    assert math.isnan(rows[0].p_auroc)
    assert rows[1].p_auroc == pytest.approx(naive_row(clouds, 1)["p_auroc"])


@pytest.mark.parametrize("exact", [True, False])
def test_categories_with_and_without_masks_may_share_batches(exact):
    clouds = [cloud | {"unmasked": cloud["category"] == 1} for cloud in make_clouds()]
    with pytest.warns(UserWarning, match="for chair: not every cloud has a point mask"):
        one, many = (evaluate(clouds, size, exact, replicates=20) for size in (1, 7))
    for index, row in enumerate(many.rows):
        assert row.o_auroc == pytest.approx(naive_row(clouds, index)["o_auroc"])
        assert row.points == naive_row(clouds, index)["points"]
        if index == 1:
            assert math.isnan(row.p_auroc)
            continue
        for metric in ("p_auroc", "p_aupr"):
            expected = naive_row(clouds, index)[metric]
            assert getattr(row, metric) == pytest.approx(expected, abs=1e-9 if exact else 1e-3)
    if exact:
        for ours, theirs in zip(one.rows, many.rows, strict=True):
            assert asdict(ours) == pytest.approx(asdict(theirs), nan_ok=True)


def test_one_class_is_nan_left_out_of_the_mean_and_warned_of_once():
    clouds = [c for c in make_clouds() if c["category"] != 1 or c["label"] == 0]
    evaluator = Evaluator((*NAMES, "absent"))
    evaluator.update(*make_batch(clouds))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = evaluator.compute()
    messages = sorted(str(w.message) for w in record)
    assert len(messages) == 4
    assert messages[0].startswith("O-AUROC and O-AUPR undefined and left out of the mean for absent: no cloud")
    assert "for chair: every cloud is normal" in messages[1]
    assert set(messages) == set(result.notes)
    assert result.undefined == dict.fromkeys(METRICS, ("chair", "absent"))
    kept = [naive_row(clouds, index) for index in (0, 2)]
    assert result.mean == pytest.approx({m: np.mean([row[m] for row in kept]) for m in METRICS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluator.compute().notes == result.notes


@pytest.mark.parametrize("field", ["point_scores", "object_scores"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_without_rank_name_the_cloud(field, bad):
    prediction, batch = make_batch(make_clouds(3))
    getattr(prediction, field)[-1] = bad
    with pytest.raises(ValueError, match=r"clouds: plier/test/002$"):
        Evaluator(NAMES).update(prediction, batch)


def test_scores_must_fit_the_batch():
    prediction, batch = make_batch(make_clouds(3))
    short = AnomalyPrediction(prediction.point_scores[:-1], prediction.object_scores)
    with pytest.raises(ValueError, match="need as many scores"):
        Evaluator(NAMES).update(short, batch)
    with pytest.raises(ValueError, match="out of range"):
        Evaluator(NAMES[:2]).update(prediction, batch)


def test_batch_without_category():
    clouds = [c for c in make_clouds() if c["category"] == 0]
    prediction, batch = make_batch(clouds)
    batch = PointCloudBatch(batch.xyz, batch.offsets, batch.sample_id, None, batch.label, batch.mask)
    with pytest.raises(InputError, match="which of the 3 categories"):
        Evaluator(NAMES).update(prediction, batch)
    evaluator = Evaluator(["cup"])
    evaluator.update(prediction, batch)
    assert_equals_naive(evaluator.compute(), clouds)


def test_category_accuracy_is_by_name():
    clouds = make_clouds(6)  # categories 0 1 2 0 1 2
    # The model was trained on other categories in another order and never saw a chair.
    predicted = torch.tensor([2, 2, 1, 0, 0, 0])  # cup, cup, plier, lamp, lamp, lamp
    logits = torch.nn.functional.one_hot(predicted, 3).float() - 5
    evaluator = Evaluator(NAMES, training_categories=("lamp", "plier", "cup"))
    evaluator.update(*make_batch(clouds, logits=logits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = evaluator.compute()
    assert result.category_accuracy == 2 / 4
    assert result.mean["category_accuracy"] == 2 / 4
    with pytest.raises(ValueError, match="over 3 categories"):
        Evaluator(NAMES, training_categories=("cup",)).update(*make_batch(clouds, logits=logits))


def test_low_precision_scores_are_ranked_as_they_are():
    clouds = make_clouds()
    evaluator = Evaluator(NAMES)
    prediction, batch = make_batch(clouds)
    evaluator.update(prediction.to(torch.bfloat16), batch)
    assert_equals_naive(evaluator.compute(), clouds)  # small integers: exact in bfloat16


def test_reset_forgets():
    evaluator = Evaluator(NAMES)
    evaluator.update(*make_batch(make_clouds(seed=1)))
    evaluator.reset()
    clouds = make_clouds(seed=2)
    evaluator.update(*make_batch(clouds))
    assert_equals_naive(evaluator.compute(), clouds)


def test_states_stay_out_of_checkpoints():
    evaluator = Evaluator(NAMES)
    evaluator.update(*make_batch(make_clouds()))
    assert evaluator.state_dict() == {}


def test_ids_are_signed_64_bit_and_stable():
    assert stable_id("cup/test/cup_bulge0") == -4259948768720370622
    ids = {stable_id(f"cloud{i}") for i in range(10_000)}
    assert len(ids) == 10_000
    assert min(ids) < 0 < max(ids) < 2**63


def continuous(clouds):
    """The same clouds with scores that no two points share."""
    generator = torch.Generator().manual_seed(3)
    return [{**c, "point_scores": c["point_scores"] + torch.rand(len(c["mask"]), generator=generator)} for c in clouds]


def test_histograms_enclose_what_sorting_finds():
    clouds = continuous(make_clouds(90))
    exact, counted = evaluate(clouds), evaluate(clouds, exact=False)
    for row, other in zip(exact.rows, counted.rows, strict=True):
        assert (other.o_auroc, other.o_aupr, other.o_f1_max) == (row.o_auroc, row.o_aupr, row.o_f1_max)
        for metric in POINT_METRICS:
            low, high = getattr(other, f"{metric}_lower"), getattr(other, f"{metric}_upper")
            assert low - 1e-12 <= getattr(row, metric) <= high + 1e-12
            assert high - low < 0.01
            assert getattr(row, f"{metric}_lower") == getattr(row, metric) == getattr(row, f"{metric}_upper")
        assert other.p_f1_max == pytest.approx(row.p_f1_max, abs=0.01)
        assert other.p_auroc_per_cloud == row.p_auroc_per_cloud
        assert other.regions == row.regions


@pytest.mark.parametrize("exact", [True, False])
def test_f1_and_the_operating_point_equal_sklearn(exact):
    clouds = continuous(make_clouds())
    evaluator = Evaluator(NAMES, exact=exact, thresholds=Thresholds(object=-2.5, point=6.0), replicates=0)
    evaluator.update(*make_batch(clouds))
    for index, row in enumerate(evaluator.compute().rows):
        chosen = [c for c in clouds if c["category"] == index]
        truths = [c["label"] for c in chosen], torch.cat([c["mask"] for c in chosen]).int().tolist()
        scores = [c["object_score"] for c in chosen], torch.cat([c["point_scores"] for c in chosen]).tolist()
        for level, truth, score, threshold in zip("op", truths, scores, (-2.5, 6.0), strict=True):
            found = [getattr(row, f"{level}_{name}") for name in ("precision", "recall", "f1")]
            alarm = np.array(score) >= threshold
            assert found == pytest.approx(precision_recall_fscore_support(truth, alarm, average="binary")[:3])
            best, at = getattr(row, f"{level}_f1_max"), getattr(row, f"{level}_f1_max_threshold")
            assert f1_score(truth, np.array(score) >= at) == pytest.approx(best)
            if exact or level == "o":
                assert best == pytest.approx(max(f1_score(truth, np.array(score) >= t) for t in set(score)))


def test_best_thresholds_are_over_all_categories():
    clouds = make_clouds()
    best = evaluate(clouds).best_thresholds
    assert best is not None
    labels, scores = zip(*((c["label"], c["object_score"]) for c in clouds), strict=True)
    truth, points = (torch.cat([c[name] for c in clouds]).numpy() for name in ("mask", "point_scores"))
    for target, score, threshold in ((labels, np.array(scores), best.object), (truth, points, best.point)):
        every = [f1_score(target, score >= t) for t in np.unique(score)]
        assert f1_score(target, score >= threshold) == pytest.approx(max(every))
    assert evaluate(clouds, exact=False).best_thresholds is None
    assert evaluate([c for c in clouds if not c["label"]]).best_thresholds is None


def test_intervals_hold_their_values_and_need_both_labels():
    clouds = [c for c in make_clouds() if c["category"] != 1 or c["label"] == 0]
    for exact in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = evaluate(clouds, exact=exact, replicates=200)
        cup, chair, _ = result.rows
        for metric in METRICS:
            low, high = cup.interval(metric)
            assert 0 <= low < getattr(cup, metric) < high <= 1
            assert np.isnan(chair.interval(metric)).all()
            low, high = result.mean_interval(metric)
            assert low < result.mean[metric] < high


def test_a_cloud_that_two_processes_counted_is_refused():
    evaluator = Evaluator(NAMES)
    evaluator.update(*make_batch(make_clouds(6)))
    other = Evaluator(NAMES)
    other.update(*make_batch(make_clouds(6)[4:]))
    for name in evaluator.records.kinds:  # what a gather does
        getattr(evaluator.records, name).extend(getattr(other.records, name))
    with pytest.raises(InputError, match="2 test clouds were given to more than one process"):
        evaluator.compute()


def test_clouds_of_one_scan_are_drawn_together_by_the_bootstrap():
    clouds = make_clouds()
    scans = {cloud["sample_id"]: f"scan of {cloud['category']}, {cloud['label']}" for cloud in clouds[::2]}
    alone, known = (Evaluator(NAMES, replicates=200, sources=sources) for sources in ({}, scans))
    for evaluator in (alone, known):
        for start in range(0, len(clouds), 7):
            evaluator.update(*make_batch(clouds[start : start + 7]))
    first, second = alone.compute(), known.compute()
    assert first.mean["o_auroc"] == second.mean["o_auroc"]
    assert asdict(first.rows[0])["o_auroc_ci_low"] != asdict(second.rows[0])["o_auroc_ci_low"]
