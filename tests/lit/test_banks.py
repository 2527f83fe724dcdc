"""Detectors without gradients through the real command: one pass, the memory in the checkpoint, two processes."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TWO, checkpoint, run

from anomaly3d.errors import InputError
from anomaly3d.lit.module import AnomalyModule
from anomaly3d.models.bank import BankDetector
from anomaly3d.models.btf import BTF
from anomaly3d.models.m3dm import M3DM
from anomaly3d.models.patchcore import PatchCore
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.simple3d import Simple3D
from anomaly3d.types import PointCloudBatch

CONF = Path(__file__).parents[1] / "conf" / "btf.yaml"
METRICS = ["o_auroc", "o_aupr", "p_auroc", "p_aupr", "clouds", "points"]


def module(detector: BankDetector) -> AnomalyModule:
    made = AnomalyModule(detector)
    made.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    made.trainer.ckpt_path = "last.ckpt"
    return made


def checkpoint_of(detector: BankDetector, file: Path) -> dict[str, Any]:
    """As Lightning writes and reads it."""
    checkpoint: dict[str, Any] = {}
    made = module(detector)
    made.on_save_checkpoint(checkpoint)
    torch.save(checkpoint | {"state_dict": made.state_dict()}, file)
    return torch.load(file, weights_only=True)


Tokens = partial(PatchCorePointMAE, num_groups=8, group_size=8, backbone_size="tiny", backbone_weights="random")


@pytest.mark.parametrize(
    ("make", "name", "trained", "now"),
    [
        (BTF, "feature", "raw", "fpfh"),
        (BTF, "protocol", "strict", "paper"),
        (BTF, "voxel_size", 0.03, 0.5),
        (BTF, "feature_neighbours", 10, 100),
        (PatchCore, "feature_neighbours", 10, 100),
        (partial(PatchCore, feature="fpfh_raw"), "raw_weight", 165.0, 11.0),
        (Simple3D, "neighbours", (40, 80, 120), (10, 20, 30)),
        (Tokens, "backbone_blocks", (4,), (2,)),
        (Tokens, "register", True, False),
        (Tokens, "num_groups", 8, 9),
    ],
)
def test_a_memory_of_other_settings_is_refused(make: Any, name: str, trained: Any, now: Any, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(make(**{name: trained}), tmp_path / "last.ckpt")
    module(make(**{name: trained})).on_load_checkpoint(checkpoint)
    other = module(make(**{name: now}))
    says = f"was trained with {name}={trained}, but the configuration says {name}={now}; give the configuration"
    with pytest.raises(InputError, match=re.escape(says)):
        other.on_load_checkpoint(checkpoint)
    del checkpoint["anomaly3d"]["settings"]  # as older versions wrote it
    other.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("make", "names", "one", "other"),
    [
        (partial(Tokens, register=True), {"hypotheses"}, {}, {"hypotheses": 7}),
        (
            partial(Tokens, register=True, resolution=0.05),
            {"complete", "complete_gap"},
            {},
            {"complete": True, "complete_gap": 5.0},
        ),
        (partial(BTF, protocol="paper", voxel_size=0.5), {"reweighting"}, {"reweighting": 3}, {"reweighting": 9}),
        (
            partial(
                M3DM, protocol="paper", num_groups=8, group_size=8, backbone_size="tiny", backbone_weights="random"
            ),
            {"reweighting"},
            {"reweighting": 3},
            {"reweighting": 9},
        ),
    ],
)
def test_thresholds_belong_to_how_a_memory_is_read(
    make: Any, names: set[str], one: dict[str, Any], other: dict[str, Any]
) -> None:
    pytest.importorskip("open3d")
    first, second = make(**one).scoring_settings(), make(**other).scoring_settings()
    assert {name for name in first if first[name] != second[name]} == names


def test_memories_of_paper_from_before_it_was_public_codes_are_refused(tmp_path: Path) -> None:
    detector = BTF(feature="raw", protocol="paper")
    detector.configure(["thing"])
    detector.observe(PointCloudBatch.pack([torch.randn(200, 3)], ["cloud"], [0]))
    detector.finish_pass()
    checkpoint = checkpoint_of(detector, tmp_path / "last.ckpt")
    module(BTF(feature="raw", protocol="paper")).on_load_checkpoint(checkpoint)
    del checkpoint["anomaly3d"]["settings"]["paper_version"]
    with pytest.raises(InputError, match=r"before its protocol paper was that of public code; train again"):
        module(BTF(feature="raw", protocol="paper")).on_load_checkpoint(checkpoint)


def test_thresholds_from_before_a_setting_of_scoring_are_not_used(tmp_path: Path) -> None:
    detector = BTF(feature="raw")
    detector.configure(["thing"])
    detector.observe(PointCloudBatch.pack([torch.randn(200, 3)], ["cloud"], [0]))
    detector.finish_pass()
    checkpoint = checkpoint_of(detector, tmp_path / "last.ckpt")
    checkpoint["anomaly3d"]["thresholds"] = {"object": 1.0, "point": 2.0}
    other = module(BTF(feature="raw"))
    other.on_load_checkpoint(checkpoint)
    assert other.thresholds is not None
    del checkpoint["anomaly3d"]["scoring"]["reweighting"]
    with pytest.warns(UserWarning, match="chosen with another reweighting and are not used"):
        other.on_load_checkpoint(checkpoint)
    assert other.thresholds is None


def test_how_a_memory_is_scored_may_change(tmp_path: Path) -> None:
    detector = BTF(feature="raw")
    detector.configure(["thing"])
    cloud = PointCloudBatch.pack([torch.randn(200, 3)], ["cloud"], [0])
    detector.observe(cloud)
    detector.finish_pass()
    checkpoint = checkpoint_of(detector, tmp_path / "last.ckpt")
    other = module(BTF(feature="raw", smooth_neighbours=1))
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(other.detector.score(cloud).point_scores, torch.zeros(200))


BTF_RAW = ("--model.detector.init_args.feature=raw",)
REGISTERED = (  # the most buffers, and templates in a module of their own
    "--model.detector=anomaly3d.models.reg3d_ad.Reg3DAD",
    *(f"--model.detector.init_args.{key}={value}" for key, value in (("num_groups", 32), ("group_size", 16))),
    *(f"--model.detector.init_args.{key}={value}" for key, value in (("hypotheses", 2000), ("coreset_size", 50))),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "method", "buffers"),
    [
        (BTF_RAW, "BTF", {"bank", "offsets"}),
        (REGISTERED, "Reg3DAD", {"bank", "offsets", "coordinates", "coordinate_offsets", "ranges", "templates.points"}),
    ],
)
def test_one_process_and_two_build_the_same_memory_and_the_same_table(
    settings: tuple[str, ...], method: str, buffers: set[str], parts: Path, tmp_path: Path
) -> None:
    if method == "Reg3DAD":
        pytest.importorskip("open3d")
    root = tmp_path / "odd"
    shutil.copytree(parts, root)
    (root / "gear/train/gear_template1.pcd").unlink()  # three clouds on two ranks: the sampler repeats one
    run(tmp_path, "fit", CONF, root, *settings, "--trainer.max_epochs=5")  # one pass is all there is to learn
    run(tmp_path, "fit", CONF, root, *settings, *TWO)
    one, two = (torch.load(checkpoint(tmp_path, version), weights_only=True) for version in range(2))
    assert one["epoch"] == two["epoch"] == 0
    assert {f"detector.{name}" for name in buffers} <= one["state_dict"].keys()
    assert len(one["state_dict"]["detector.offsets"]) == 3
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())

    trained, tables = checkpoint(tmp_path), []
    for version, devices in enumerate(((), TWO), start=2):
        run(
            tmp_path, "test", CONF, root, "--ckpt_path", str(trained), "--model.exact_metrics=true", *settings, *devices
        )
        tables.append(pd.read_csv(next(tmp_path.glob(f"runs/*/version_{version}/test/metrics.csv"))))
    np.testing.assert_allclose(tables[0][METRICS], tables[1][METRICS], atol=1e-9)
    assert tables[0]["clouds"].tolist() == [8, 8]
    record = json.loads(next(tmp_path.glob("runs/*/version_2/test/record.json")).read_text())
    assert (record["method"], record["protocol"]) == (method, "strict")
    assert (record["backbone_sha256"] is None) == (method == "BTF")


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
