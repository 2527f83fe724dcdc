"""Detectors without gradients through the real command: one pass, the memory in the checkpoint, two processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TWO, checkpoint, run

CONF = Path(__file__).parents[1] / "conf" / "btf.yaml"
METRICS = ["o_auroc", "o_aupr", "p_auroc", "p_aupr", "clouds", "points"]


@pytest.mark.slow
def test_one_process_and_two_build_the_same_memory_and_the_same_table(parts: Path, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    shutil.copytree(parts, root)
    (root / "gear/train/gear_template1.pcd").unlink()  # three clouds on two ranks: the sampler repeats one
    run(tmp_path, "fit", CONF, root, "--trainer.max_epochs=5")  # one pass is all there is to learn
    run(tmp_path, "fit", CONF, root, *TWO)
    one, two = (torch.load(checkpoint(tmp_path, version), weights_only=True) for version in range(2))
    assert one["epoch"] == two["epoch"] == 0
    assert one["state_dict"]["detector.bank"].shape[1] == 3
    assert len(one["state_dict"]["detector.offsets"]) == 3
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())

    trained, tables = checkpoint(tmp_path), []
    for version, devices in enumerate(((), TWO), start=2):
        run(tmp_path, "test", CONF, root, "--ckpt_path", str(trained), "--model.exact_metrics=true", *devices)
        tables.append(pd.read_csv(next(tmp_path.glob(f"runs/*/version_{version}/test/metrics.csv"))))
    np.testing.assert_allclose(tables[0][METRICS], tables[1][METRICS], atol=1e-9)
    assert tables[0]["clouds"].tolist() == [8, 8]
    record = json.loads(next(tmp_path.glob("runs/*/version_2/test/record.json")).read_text())
    assert (record["method"], record["protocol"], record["backbone_sha256"]) == ("BTF", "strict", None)


@pytest.mark.slow
def test_compare_tests_a_memory_in_the_process_that_built_it_and_from_its_checkpoint(
    parts: Path, tmp_path: Path
) -> None:
    from anomaly3d.compare.compare import compare
    from anomaly3d.compare.grid import Method

    grid = {"BTF(Raw)": Method(CONF)}
    compare(grid, tmp_path, settings=["unified"], overrides={"data.root": str(parts)})
    folder = tmp_path / "runs/BTF(Raw)/unified/all/seed0"
    record = folder / "record.json"
    first = json.loads(record.read_text())["results"]
    record.unlink()  # a run that was stopped between training and test
    compare(grid, tmp_path, settings=["unified"], overrides={"data.root": str(parts)})
    assert json.loads(record.read_text())["results"] == first
