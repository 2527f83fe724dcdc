"""Two gloo processes with uneven, overlapping shares against one process."""

import pickle
from pathlib import Path

import pandas as pd
import pytest
import torch
from evaluator_cases import NAMES, evaluate, make_batch, make_clouds
from torch.multiprocessing.spawn import spawn

from anomaly3d.errors import InputError
from anomaly3d.metrics.classification import AUROC
from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.metrics.result import METRICS


def shares() -> dict[str, list[list[int]]]:
    """Which clouds each rank sees, in which order."""
    everything = list(range(40))
    return {
        "uneven": [everything[:29], everything[29:]],
        "sampler padding": [everything[0::2], [*everything[1::2], 0, 2]],
        "all twice": [everything, everything[::-1]],
        "idle rank": [everything, []],
    }


def worker(rank: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    clouds = make_clouds()
    results = {}
    runs = [(name, parts, True) for name, parts in shares().items()]
    runs += [(f"{name}, counted", shares()[name], False) for name in ("uneven", "idle rank")]  # no repeats
    for name, parts, exact in runs:
        evaluator = Evaluator(NAMES, exact=exact, replicates=50)
        for start in range(0, len(parts[rank]), 6):
            batch = [clouds[i] for i in parts[rank][start : start + 6]]
            logits = torch.nn.functional.one_hot(torch.tensor([c["category"] for c in batch]), len(NAMES)).float()
            evaluator.update(*make_batch(batch, logits=logits))
        first = evaluator.compute()
        assert repr(evaluator.compute()) == repr(first), "a gather must leave the local states as they were"
        results[name] = first
    evaluator = Evaluator(NAMES)
    evaluator.update(*make_batch(clouds[rank : rank + 2]))
    with pytest.raises(InputError, match="1 test clouds were given to more than one process"):
        evaluator.compute()
    metric = AUROC()
    if rank == 0:
        metric.update(torch.tensor([-3.0, 7.0, 2.0]), torch.tensor([0, 1, 1]))
        metric.update(torch.tensor([2.0]), torch.tensor([0]))
    results["metric"] = metric.compute().item()
    Path(out, f"{rank}.pickle").write_bytes(pickle.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    spawn(worker, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    expected = evaluate(make_clouds(), replicates=50)
    for rank in range(2):
        results = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert results.pop("metric") == pytest.approx(0.875)
        for name, result in results.items():
            columns = [*METRICS, "clouds", "regions", "p_auroc_per_cloud", "o_auroc_ci_low", "aupro_ci_high"]
            got, wanted = (pd.DataFrame(r.to_frame(), columns=columns) for r in (result, expected))
            pd.testing.assert_frame_equal(got, wanted, rtol=1e-12, obj=name)
            assert result.category_accuracy == 1
        repeats = [results[name].repeats for name in shares()]
        assert repeats == [0, 2, 40, 0]
