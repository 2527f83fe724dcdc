"""Two processes on the CPU, as `ddp` runs them on GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TWO, checkpoint, run

from anomaly3d.models.components.pose_store import POSES

SAME = ["o_auroc", "o_aupr", "clouds", "points", "regions", "p_auroc_per_cloud", "o_f1_max"]
POINTS = ["p_auroc", "p_aupr", "aupro"]


@pytest.mark.slow
def test_two_processes_train_one_model_and_count_each_cloud_once(conf: Path, parts: Path, tmp_path: Path) -> None:
    run(tmp_path, "fit", conf, parts, *TWO)
    trained = checkpoint(tmp_path)
    state = torch.load(trained, weights_only=True)
    # 2 categories x 2 templates on two ranks; Mamba3dAD takes two clouds per rank.
    assert state["global_step"] == 2 * (1 if conf.stem == "mamba3dad" else 2)

    tables = []
    for version, devices in enumerate((TWO, ()), start=1):
        run(tmp_path, "test", conf, parts, "--ckpt_path", str(trained), *devices)
        (file,) = tmp_path.glob(f"runs/*/version_{version}/test/metrics.csv")
        tables.append(pd.read_csv(file))
    assert tables[0]["clouds"].tolist() == [8, 8]
    np.testing.assert_allclose(tables[0][SAME], tables[1][SAME], atol=1e-9)
    for metric in POINTS:  # of histograms on other grids: the exact value lies within both bounds
        for one, other in (tables, tables[::-1]):
            assert (one[f"{metric}_lower"] <= other[f"{metric}_upper"] + 1e-9).all()
        assert (tables[0][f"{metric}_upper"] - tables[0][f"{metric}_lower"] < 0.01).all()


@pytest.mark.slow
@pytest.mark.usefixtures("open3d")
def test_two_processes_find_the_templates_that_one_finds(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank sees half of the training clouds; the first of a category by sample id may be on either.

    The errors that are expected on them are of all clouds, too, and so are the clouds that distances are taken from,
    which a test may leave out of its scores.
    """
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    register = ["--model.detector.init_args.register=true", "--model.detector.init_args.complete=true"]
    register += ["--model.detector.init_args.resolution=0.02", "--model.detector.init_args.pad=true"]
    register += ["--model.detector.init_args.relative=true", "--model.detector.init_args.hypotheses=500"]
    share = "--model.detector.init_args.offset_share"
    templates, places, kept = [], [], []
    for folder, devices in (("one", ()), ("two", TWO)):
        (tmp_path / folder).mkdir()
        run(tmp_path / folder, "fit", conf, parts, *register, f"{share}=0.5", "--trainer.limit_val_batches=0", *devices)
        state = torch.load(checkpoint(tmp_path / folder), weights_only=True)["state_dict"]
        templates.append([state[f"detector.placement.templates.{name}"] for name in ("points", "offsets")])
        places.append(state["detector.expected.rows"][:, :3])
        kept.append(state["detector.placement.offsets.rows"])
    assert templates[0][1].tolist() == [0, 1000, 2000]
    assert all(torch.equal(one, two) for one, two in zip(*templates, strict=True))
    torch.testing.assert_close(*places)
    torch.testing.assert_close(*kept)
    monkeypatch.setenv(POSES, str(tmp_path / "poses"))  # both tests register the same clouds
    trained, scores = checkpoint(tmp_path / "one"), []
    for version, value in enumerate((0.5, 0.0), start=1):
        run(tmp_path / "one", "test", conf, parts, "--ckpt_path", str(trained), *register, f"{share}={value}")
        (file,) = (tmp_path / "one").glob(f"runs/*/version_{version}/test/metrics.csv")
        scores.append(pd.read_csv(file)["p_auroc"])
    assert all(found.notna().all() for found in scores)
    assert (scores[0] != scores[1]).all()
