"""The real command, end to end, on a small synthetic data set."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from anomaly3d.__main__ import main
from anomaly3d.data.io import read_points
from anomaly3d.data.pcd import read_pcd, write_pcd
from anomaly3d.lit.checkpoints import WholeCheckpoints
from anomaly3d.lit.cli import AnomalyCLI
from anomaly3d.models.backbones.weights import SHIPPED, weights_hash
from anomaly3d.models.components.pose_store import POSES

METRICS = ["o_auroc", "o_aupr", "p_auroc", "p_aupr", "aupro"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(conf: Path, root: Path, *extra: str) -> Path:
    """Train; the checkpoint."""
    main(["fit", "--config", str(conf), "--data.root", str(root), *extra])
    (checkpoint,) = Path("runs").glob("*/version_0/checkpoints/last.ckpt")
    return checkpoint


def table(version: int, split: str = "test") -> pd.DataFrame:
    """Metrics that the run wrote."""
    (file,) = Path("runs").glob(f"*/version_{version}/{split}/metrics.csv")
    return pd.read_csv(file)


@pytest.mark.slow
def test_fit_test_validate_predict(conf: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = fit(conf, parts)
    common = ["--config", str(conf), "--data.root", str(parts), "--ckpt_path", str(checkpoint)]
    main(["test", *common])
    result = table(1)
    assert result["category"].tolist() == ["flange", "gear"]
    assert result[METRICS].notna().to_numpy().all()
    assert result["clouds"].tolist() == [8, 8]
    assert result["anomalous_clouds"].tolist() == [6, 6]
    clouds = sorted(parts.glob("*/test/*.pcd"))
    assert result["points"].to_numpy().sum() == sum(len(read_points(c)) for c in clouds)
    (record_file,) = Path("runs").glob("*/version_1/test/record.json")
    record = json.loads(record_file.read_text())
    assert record["protocol"] == "strict"
    assert record["seed"] == 0
    assert len(record["backbone_sha256"]) == len(record["config_sha256"]) == 64
    assert (record["category_accuracy"] is None) == (conf.stem != "sedir")
    assert record["backbone_weights"] == "random"
    assert record["setting"] == "unified"
    assert record["dataset"] == "parts"
    assert {"farthest_point_sampling on cpu", "knn on cpu"} <= record["ops_backend"].keys()
    assert record["train_seconds"] > 0
    assert record["test_seconds"] > 0
    assert record["peak_memory_mib"] > 100
    made_by = torch.load(checkpoint, weights_only=True)["anomaly3d"]
    assert record["thresholds"] == made_by["thresholds"]
    assert result["o_recall"].notna().to_numpy().all()
    assert set(result["config_sha256"]) == {record["config_sha256"]}
    for metric in METRICS:
        assert (result[f"{metric}_ci_low"] <= result[f"{metric}_ci_high"]).to_numpy().all()
        if metric not in ("o_auroc", "o_aupr"):
            assert (result[f"{metric}_lower"] <= result[metric]).to_numpy().all()
            assert (result[metric] <= result[f"{metric}_upper"]).to_numpy().all()
    assert (record_file.parent / "metrics.tex").read_text().startswith(r"\begin{table}")
    assert "flange" in capsys.readouterr().out

    main(["validate", *common])
    assert table(2, "validation")["clouds"].tolist() == [2, 2]

    main(["predict", *common, "--data.categories", "[gear]"])
    (objects_file,) = Path("runs").glob("*/version_3/predictions/objects.csv")
    objects = pd.read_csv(objects_file)
    assert len(objects) == 8
    predicted = json.loads((objects_file.parent / "record.json").read_text())
    assert predicted["split"] == "predict"
    for name in ("seed", "method", "thresholds", "backbone_sha256", "trained_with"):
        assert predicted[name] == record[name]
    # What trained, whatever the process that tests is configured with.
    assert record["trained_with"]["config_sha256"] == record["config_sha256"] != predicted["config_sha256"]
    assert record["trained_with"].keys() == {
        *("git_commit", "versions", "python", "device", "backbone_weights", "config_sha256"),
    }
    assert (np.diff(objects["object_score"].to_numpy()) <= 0).all()
    for row in objects.to_dict("records"):
        scores = np.load(objects_file.parent / str(row["point_scores"]))
        cloud = parts / f"{row['sample_id']}.pcd"
        assert row["file"] == str(cloud)
        assert row["anomalous"] == (row["object_score"] >= predicted["thresholds"]["object"])
        share = (scores >= np.float32(predicted["thresholds"]["point"])).mean()
        assert row["anomalous_points"] == pytest.approx(share)
        assert scores.shape == (len(read_points(cloud)),)
        assert np.isfinite(scores).all()
        assert (objects_file.parent / str(row["point_scores"])).with_suffix(".ply").stat().st_size > 15 * len(scores)

    # A scan far from the origin, with a point that is none: scores by row of the file, colours where the file lies.
    scan = read_points(cloud) + np.array([1000.0, -2000.0, 500.0])
    scan[3] = np.nan
    np.save("scan.npy", scan)
    main(["predict", *common, "--data.predict_path", "scan.npy"])
    (scores_file,) = Path("runs").glob("*/version_4/predictions/*.npy")
    scores = np.load(scores_file)
    assert np.isnan(scores).nonzero()[0].tolist() == [3]
    coloured = trimesh.load(scores_file.with_suffix(".ply"))
    assert isinstance(coloured, trimesh.PointCloud)
    np.testing.assert_allclose(coloured.vertices, np.delete(scan, 3, axis=0), atol=1e-3)
    assert len(scores) == len(scan)

    # A cloud that can't be used ends the run by its name; those before it are in the table.
    Path("inbox").mkdir()
    np.save("inbox/a.npy", np.delete(scan, 3, axis=0))
    np.save("inbox/b.npy", scan[5:9])
    with pytest.raises(SystemExit):
        main(["predict", *common, "--data.predict_path", "inbox"])
    assert "b.npy: 4 points, fewer than" in capsys.readouterr().err
    (objects_file,) = Path("runs").glob("*/version_5/predictions/objects.csv")
    assert pd.read_csv(objects_file)["file"].tolist() == ["inbox/a.npy"]
    assert (objects_file.parent / "record.json").exists()
    np.save("inbox/b.npy", scan[5:22])  # too few for this model alone
    with pytest.raises(SystemExit):
        main(["predict", *common, "--data.predict_path", "inbox"])
    assert "anomaly3d: inbox/b.npy: 17 points, but" in capsys.readouterr().err

    # One of its categories, and another seed: the record is of the training all the same.
    main(["test", *common, "--data.categories", "[gear]", "--seed_everything", "5"])
    (other,) = Path("runs").glob("*/version_7/test/record.json")
    same = ("seed", "setting")
    assert {k: json.loads(other.read_text())[k] for k in same} == {k: record[k] for k in same}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fit", "--config", "{conf}", "--data.rot", "x"], "Option 'rot' is not accepted"),
        (["fit", "--config", "{conf}", "--model.detector.init_args.widht", "3"], "Option 'widht' is not accepted"),
        (["fit", "--config", "{conf}", "--trainer.max_epochs", "ten"], '"trainer.max_epochs": Expected a int'),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["fit"], "model.detector, "),
        (["pretrain", "--rot", "x"], "unrecognized arguments: --rot x"),
        (["compare", "--jobs", "two", "--methods", "{{}}", "--output", "o"], '"jobs": Expected a int'),
        (["generate", "--rot", "x"], "--rot x"),
        (["ice", "--rot", "x"], "--rot x"),
    ],
)
def test_wrong_arguments_are_one_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    with pytest.raises(SystemExit) as stop:
        main([arg.format(conf=conf) for arg in args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("anomaly3d: ")
    assert said in error
    assert f"`anomaly3d {args[0]} --help`" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_validation_without_clouds_is_no_success(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    checkpoint = fit(conf, parts)
    common = ["--config", str(conf), "--data.root", str(parts), "--ckpt_path", str(checkpoint)]
    for none in (["--data.val_normal=0", "--data.val_defective=0"], ["--trainer.limit_val_batches=0"]):
        with pytest.raises(SystemExit):
            main(["validate", *common, *none])
        assert "anomaly3d: validate: no clouds" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_nothing_is_scored_without_a_checkpoint_of_a_training(
    parts: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    wrong = (
        ([], "give the checkpoint, --ckpt_path FILE"),
        (["--ckpt_path=last"], "no such checkpoint"),
        ([f"--ckpt_path={SHIPPED['small']}"], "no checkpoint of a training"),
    )
    for more, message in wrong:
        with pytest.raises(SystemExit):
            main([verb, "--config", str(conf), "--data.root", str(parts), *more])
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


@pytest.mark.slow
def test_one_category_is_one_data_setting(conf: Path, parts: Path) -> None:
    checkpoint = fit(conf, parts, "--data.categories", "[gear]")
    common = ["--config", str(conf), "--data.root", str(parts), "--ckpt_path", str(checkpoint)]
    main(["test", *common, "--data.categories", "[gear]"])
    assert table(1)["category"].tolist() == ["gear"]
    main(["test", *common])  # the other category too, which this model has never seen
    both = table(2)
    assert both["category"].tolist() == ["flange", "gear"]
    pd.testing.assert_series_equal(both.loc[1, METRICS], table(1).loc[0, METRICS], check_names=False)


@pytest.mark.slow
def test_same_seed_same_bits(conf: Path, parts: Path) -> None:
    fit(conf, parts)
    main(["fit", "--config", str(conf), "--data.root", str(parts)])
    main(["fit", "--config", str(conf), "--data.root", str(parts), "--seed_everything", "1"])
    states = [
        torch.load(next(Path("runs").glob(f"*/version_{i}/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
        for i in range(3)
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.slow
def test_strict_scores_ignore_the_order_of_points(conf: Path, parts: Path) -> None:
    checkpoint = fit(conf, parts)
    shuffled = Path("shuffled")
    shutil.copytree(parts, shuffled)
    generator = np.random.default_rng(0)
    for cloud in shuffled.glob("*/test/*.pcd"):
        write_pcd(cloud, generator.permutation(read_pcd(cloud)).astype(np.float32))
    common = ["--config", str(conf), "--ckpt_path", str(checkpoint)]
    main(["test", *common, "--data.root", str(parts)])
    main(["test", *common, "--data.root", str(shuffled)])
    np.testing.assert_allclose(table(1)[METRICS], table(2)[METRICS], atol=1e-6)


@pytest.mark.slow
def test_training_never_reads_the_test_folder(conf: Path, parts: Path) -> None:
    root = Path("without_test")
    shutil.copytree(parts, root, ignore=shutil.ignore_patterns("test", "GT"))
    stopper = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/o_auroc")
    # No AUROC is better than another by 2: training stops at the second validation.
    stopper += ("--trainer.callbacks.mode=max", "--trainer.callbacks.min_delta=2")
    stopper += ("--trainer.callbacks.patience=1", "--trainer.max_epochs=20")
    checkpoint = fit(conf, root, *stopper)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["epoch"] == 1
    chosen = saved["anomaly3d"]["thresholds"]
    assert np.isfinite([chosen["object"], chosen["point"]]).all()
    arguments = ["--config", str(conf), "--data.root", str(root), "--ckpt_path", str(checkpoint)]
    main(["validate", *arguments])
    assert table(1, "validation")["clouds"].tolist() == [2, 2]
    assert table(1, "validation")["anomalous_clouds"].tolist() == [1, 1]


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_with_the_same_bits(conf: Path, parts: Path, tmp_path: Path) -> None:
    """Noise is drawn at every step, SeDiR's buffer is filled by all of them."""

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    def run(name: str, *callbacks: Callback) -> Path:
        checkpoint = tmp_path / name / "last.ckpt"
        arguments = ["--config", str(conf), "--data.root", str(parts), "--trainer.max_epochs=4"]
        cli = AnomalyCLI([*arguments, f"--checkpoint.dirpath={checkpoint.parent}"], callbacks=callbacks, run=False)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint if checkpoint.exists() else None)
        return checkpoint

    with pytest.raises(SystemExit):
        run("stopped", Stop())
    stopped = torch.load(run("stopped"), weights_only=True)
    whole = torch.load(run("whole"), weights_only=True)
    assert stopped["epoch"] == whole["epoch"] == 3
    assert all(torch.equal(value, stopped["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert whole["anomaly3d"]["thresholds"] == stopped["anomaly3d"]["thresholds"]


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(conf: Path, parts: Path) -> None:
    checkpoint = fit(conf, parts, "--trainer.max_epochs", "1")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 0
    main(["fit", "--config", str(conf), "--data.root", str(parts), "--ckpt_path", str(checkpoint)])
    (later,) = Path("runs").glob("*/version_1/checkpoints/last.ckpt")
    assert torch.load(later, weights_only=True)["epoch"] == 1


def test_checkpoints_are_written_whole() -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    trainer = AnomalyCLI(["--config", str(conf), "--data.root=nowhere"], run=False).trainer
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)


def test_an_override_is_followed_by_those_who_refer_to_it(tmp_path: Path) -> None:
    from anomaly3d.lit.cli import DataCLI

    (tmp_path / "model.yaml").write_text(
        "lr: 0.1\nweight_decay: ${.lr}\ndetector: {class_path: anomaly3d.models.sedir.sedir.SeDiR}\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        "model: model.yaml\n"
        "data: {class_path: anomaly3d.data.anomaly_shapenet.AnomalyShapeNet, init_args: {root: here}}\n"
    )
    cli = DataCLI(["--config", str(tmp_path / "recipe.yaml"), "--model.lr", "0.25"])
    assert cli.config["model"]["lr"] == 0.25
    assert cli.config["model"]["weight_decay"] == 0.25


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from anomaly3d.__main__ import main; main(['--help']);"
        "heavy = {'torch', 'lightning', 'numpy', 'open3d', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("fit", "validate", "test", "predict", "generate", "compare", "ice"):
        assert f"  {verb} " in done.stdout


def says(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command writes to standard error when it refuses its input."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.splitlines()[-1]


def test_bad_data_gets_one_line(conf: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = ["fit", "--config", str(conf)]
    assert "nowhere" in says([*verb, "--data.root", "nowhere"], capsys)
    message = says([*verb, "--data.root", str(parts), "--data.categories", "[gera]"], capsys)
    assert "gera" in message
    assert "gear" in message
    assert not Path("runs").exists() or not list(Path("runs").iterdir())

    broken = Path("broken")
    shutil.copytree(parts, broken)
    template = broken / "gear" / "train" / "gear_template0.pcd"
    template.write_bytes(b"")
    message = says([*verb, "--data.root", str(broken)], capsys)
    assert template.name in message
    write_pcd(template, np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    message = says([*verb, "--data.root", str(broken)], capsys)
    assert "gear_template0" in message
    assert "points" in message
    assert not list(Path("runs").glob("**/*.ckpt"))
    template.unlink()
    template.symlink_to("nowhere.pcd")
    assert f"{template}: a link to nothing" in says([*verb, "--data.root", str(broken)], capsys)


def test_what_the_system_refuses_gets_one_line(conf: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("no folder")
    verb = ["fit", "--config", str(conf), "--data.root", str(parts)]
    assert "file" in says([*verb, "--trainer.logger.init_args.save_dir", "file/runs"], capsys)
    assert "file" in says(["generate", "--root", "file/parts", "--categories", "[gear]"], capsys)
    assert "templates=0: give a value from 1" in says(["generate", "--root", "none", "--templates", "0"], capsys)
    assert not Path("none").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_machine_without_a_gpu_is_told_what_to_take(
    conf: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = says(["fit", "--config", str(conf), "--data.root", str(parts), "--trainer.accelerator", "gpu"], capsys)
    assert "--trainer configs/trainer/cpu.yaml" in message


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    sys.stderr.write(warnings.formatwarning(UserWarning("as it is"), UserWarning, "file.py", 1))
    sys.stderr.write(warnings.formatwarning(FutureWarning("soon"), FutureWarning, "file.py", 1))
    assert capsys.readouterr().err.splitlines()[-2:] == ["anomaly3d: as it is", "anomaly3d: FutureWarning: soon"]


def test_a_training_that_could_not_be_validated_does_not_begin(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(parts, tmp_path / "small")
    small = root / "gear" / "train" / "gear_template1.pcd"
    write_pcd(small, np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32))
    conf = Path(__file__).parents[1] / "conf" / "btf.yaml"
    verb = ["fit", "--config", str(conf), "--data.root", str(root), "--data.val_defective", "4"]
    message = says([*verb, "--trainer.max_epochs", "100"], capsys)
    assert f"{small}: no synthetic defect finds a place" in message
    assert not list(Path("runs").glob("**/*.ckpt"))
    main([*verb, "--trainer.limit_val_batches", "0"])


@pytest.mark.slow
def test_wrong_checkpoints_get_one_line(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path(__file__).parents[1] / "conf"
    checkpoint = fit(conf / "sedir.yaml", parts, "--trainer.max_epochs", "1")

    def test(recipe: str, path: str, *extra: str) -> str:
        arguments = ["--config", str(conf / recipe), "--data.root", str(parts), "--ckpt_path", path]
        return says(["test", *arguments, *extra], capsys)

    message = test("mamba3dad.yaml", str(checkpoint))
    assert str(checkpoint) in message
    assert "SeDiR" in message
    assert "Mamba3dAD" in message
    message = test("sedir.yaml", str(checkpoint), "--model.detector.init_args.width", "16")
    assert str(checkpoint) in message
    assert "other settings" in message
    message = test("sedir.yaml", str(checkpoint), "--model.detector.init_args.backbone_blocks", "[1]")
    assert "backbone_blocks=(4,), but the configuration says backbone_blocks=(1,)" in message
    arguments = ["--config", str(conf / "sedir.yaml"), "--data.root", str(parts), "--ckpt_path", str(checkpoint)]
    message = says(["fit", *arguments, "--data.categories", "[gear]"], capsys)
    assert str(checkpoint) in message
    assert "flange, gear can't go on with gear" in message
    assert "missing.ckpt" in test("sedir.yaml", "missing.ckpt")
    assert f"{checkpoint.parent}: a folder; give the checkpoint in it, {checkpoint}" in test(
        "sedir.yaml", str(checkpoint.parent)
    )
    Path("cut.ckpt").write_bytes(checkpoint.read_bytes()[:1000])
    assert "cut.ckpt" in test("sedir.yaml", "cut.ckpt")


def test_a_run_says_which_weights_its_backbone_has(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    arguments = ["--config", str(conf), "--data.root", str(parts)]
    for weights, size, line in (
        ("small", "small", r"^Backbone: point_mae_small\.safetensors, sha256 of the state "),
        ("random", "tiny", r"^The 'tiny' Point-MAE has random weights \(seed 0, sha256 of the state "),
    ):
        settings = {"backbone_weights": weights, "backbone_size": size}
        overrides = [f"--model.detector.init_args.{name}={value}" for name, value in settings.items()]
        cli = AnomalyCLI([*arguments, *overrides], run=False)
        says = capsys.readouterr().err
        assert re.search(line + weights_hash(cli.model.detector.backbone), says, re.MULTILINE)


@pytest.mark.parametrize("content", [b"", b"\x80\x02X\x01\x00\x00\x00\xff."], ids=["empty", "not UTF-8"])
def test_a_damaged_checkpoint_gets_one_line(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("damaged.ckpt").write_bytes(content)
    conf = Path(__file__).parents[1] / "conf" / "btf.yaml"
    assert "damaged.ckpt: not a readable" in says(["test", "--config", str(conf), "--ckpt_path=damaged.ckpt"], capsys)


def test_unknown_verbs_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="unknown verb 'train'"):
        main(["train"])
    conf = Path(__file__).parents[1] / "conf" / "sedir.yaml"
    assert "num_grops" in says(["fit", "--config", str(conf), "--model.detector.init_args.num_grops", "3"], capsys)


def markdown(version: int) -> str:
    """The table of a test with what stands below it."""
    (file,) = Path("runs").glob(f"*/version_{version}/test/metrics.md")
    return file.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("open3d")
def test_mc3d_ad_predicts_the_category_it_registers_to_and_under_paper_is_told_it(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSES, str(tmp_path / "poses"))  # all five runs register the same clouds
    conf = Path(__file__).parents[1] / "conf" / "mc3d-ad.yaml"
    register = ["--model.detector.init_args.register=true", "--model.detector.init_args.hypotheses=500"]
    register += ["--trainer.limit_val_batches=0"]
    checkpoint = fit(conf, parts, *register)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["detector.placement.templates.offsets"].tolist() == [0, 1000, 2000]  # a cloud of each category
    common = ["--config", str(conf), "--data.root", str(parts), "--ckpt_path", str(checkpoint), *register]
    main(["test", *common])
    assert "Category accuracy 100.0 %." in markdown(1)
    paper = ["--model.detector.init_args.protocol=paper", "--model.detector.init_args.standardise=true"]
    with pytest.raises(SystemExit):  # clouds were in the template's frame
        main(["test", *common, *paper])
    assert "was trained with protocol=strict" in capsys.readouterr().err

    told = Path("runs/told")
    named = [
        "--config",
        str(conf),
        "--data.root",
        str(parts),
        *register,
        *paper,
        f"--trainer.logger.init_args.name={told.name}",
    ]
    main(["fit", *named])
    named += ["--ckpt_path", str(told / "version_0/checkpoints/last.ckpt")]
    main(["test", *named])
    main(["test", *named, "--data.categories", "[gear]"])  # an index into other names, and the same category
    whole, alone = (told / f"version_{version}/test" for version in (1, 2))
    assert "Category accuracy" not in (whole / "metrics.md").read_text()
    metrics = [pd.read_csv(folder / "metrics.csv") for folder in (whole, alone)]
    pd.testing.assert_series_equal(metrics[0].loc[1, METRICS], metrics[1].loc[0, METRICS], check_names=False)


def test_no_checkpoint_within_an_epoch(conf: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(conf, parts, "--checkpoint.every_n_train_steps=1")
    assert "checkpoint.every_n_train_steps: a checkpoint within an epoch lacks" in capsys.readouterr().err
    assert not Path("runs").exists()
