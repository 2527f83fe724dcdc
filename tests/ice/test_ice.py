"""The verb `ice`, end to end on small trained models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from anomaly3d.__main__ import main
from anomaly3d.data.dataset import CloudDataset
from anomaly3d.ice.features import cloud_features
from anomaly3d.lit.trained import load_trained
from anomaly3d.models.sedir import SeDiR

CONF = Path(__file__).parents[1] / "conf"
NO_C3L = [f"--model.detector.init_args.{name}_weight=0" for name in ("contrastive", "cosine", "class")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> Path:
    """Log folders of SeDiR, whole, without C3L, without global token and of one category, and of another detector."""
    root = tmp_path_factory.mktemp("trained")
    for name, recipe, extra in (
        ("sedir", "sedir", []),
        ("without", "sedir", NO_C3L),
        ("none", "sedir", [*NO_C3L, "--model.detector.init_args.global_token=none"]),
        ("mamba3dad", "mamba3dad", []),
        ("gear", "sedir", ["--data.categories=[gear]"]),
    ):
        logger = [f"--trainer.logger.init_args.save_dir={root}", f"--trainer.logger.init_args.name={name}"]
        short = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", f"--data.root={parts}"]
        main(["fit", f"--config={CONF / f'{recipe}.yaml'}", *logger, *short, *extra])
        (root / name / "version_0").rename(root / name / "log")
    return root


@pytest.mark.slow
def test_report_of_two_models(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [f"--runs.SeDiR={trained}/sedir/log", f"--runs.without={trained}/without/log"]
    main(["ice", *runs, f"--output={tmp_path / 'a'}", "--views=2"])
    printed = capsys.readouterr().out
    summary, clouds = (pd.read_csv(tmp_path / "a" / name) for name in ("ice.csv", "clouds.csv"))
    assert summary["model"].tolist() == ["SeDiR", "without"]
    assert summary["contrastive_weight"].tolist() == [0.001, 0]
    assert summary["epochs"].tolist() == [1, 1]
    for row in summary.to_dict("records"):
        mine = clouds[clouds["model"] == row["model"]]
        assert len(mine) == row["clouds"] == 4  # two normal test clouds of each category
        assert all("positive" in name for name in mine["sample_id"])
        assert row["accuracy"] == (mine["category"] == mine["predicted"]).mean()
        assert row["pearson"] == pytest.approx(np.corrcoef(mine["score"], mine["error"])[0, 1])
        assert row["error"] == pytest.approx(mine["error"].mean())
        assert row["lowest"] == mine["score"].min()
        assert f"{100 * row['accuracy']:.1f}" in printed
        assert {0, 0.25, 0.5, 0.75, 1} >= {row[f"probe_{kind}"] for kind in ("act", "mean", "max")}
    text = (tmp_path / "a" / "ice.md").read_text()
    for picture in ("scores.png", "global_tokens.png"):
        assert f"({picture})" in text
        assert (tmp_path / "a" / picture).stat().st_size > 10_000

    main(["ice", *runs, f"--output={tmp_path / 'b'}", "--views=2"])
    for name in ("ice.csv", "clouds.csv", "ice.md", "scores.png", "global_tokens.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_a_model_without_global_token_has_no_picture_of_them(trained: Path, tmp_path: Path) -> None:
    main(["ice", f"--runs.none={trained}/none/log", f"--output={tmp_path}", "--views=2"])
    (row,) = pd.read_csv(tmp_path / "ice.csv").to_dict("records")
    assert np.isnan(row["probe_act"])
    assert 0 <= row["probe_mean"] <= 1
    assert not (tmp_path / "global_tokens.png").exists()
    assert "global_tokens.png" not in (tmp_path / "ice.md").read_text()


@pytest.mark.slow
def test_features_are_those_of_the_trained_model(trained: Path) -> None:
    model = load_trained(trained / "sedir" / "log")
    detector, data = model.detector, model.data
    assert isinstance(detector, SeDiR)
    saved = torch.load(trained / "sedir" / "log" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"detector.{name}"], tensor) for name, tensor in detector.state_dict().items())
    data.setup()
    found = cloud_features(
        detector, CloudDataset(data.records("test"), data.category_names, data.reader), model.device, ""
    )
    for i, batch in enumerate(data.test_dataloader()):
        view = detector.standardised(detector.view(detector.patches(batch)))
        with torch.no_grad():
            made = detector.reconstruct(view)
        errors = [(f - r).square().sum().sqrt() for f, r in zip(view.base[0], made.tokens[0], strict=True)]
        assert found.name[i] == batch.sample_id[0]
        assert found.category[i] == batch.category[0]
        assert found.error[i] == pytest.approx(float(sum(errors)) / len(errors), rel=1e-5)
        np.testing.assert_allclose(found.rebuilt[i], made.tokens[0].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.encoded["max"][i], made.encoded.base[0].max(0).values, rtol=1e-5)
        assert found.z is not None
        assert np.linalg.norm(found.z[i]) == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
def test_a_run_of_compare_is_found_by_its_record(trained: Path, tmp_path: Path) -> None:
    log = trained / "sedir" / "log"
    run = tmp_path / "seed0"
    shutil.copytree(log / "checkpoints", run / "checkpoints")
    (run / "log" / "version_3").mkdir(parents=True)
    shutil.copy(log / "config.yaml", run / "log" / "version_3")
    (run / "record.json").write_text('{"log": "log/version_3"}')
    a, b = load_trained(log), load_trained(run)
    assert a.epochs == b.epochs == 1
    assert all(torch.equal(x, y) for x, y in zip(a.detector.parameters(), b.detector.parameters(), strict=True))


@pytest.mark.slow
def test_bad_input_gets_one_line(
    trained: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(runs: dict[str, Path], *extra: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["ice", *(f"--runs.{n}={p}" for n, p in runs.items()), f"--output={tmp_path / 'out'}", *extra])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert not (tmp_path / "out").exists()
        return message.splitlines()[-1]

    assert "none given" in says({}, "--runs={}")
    whole = trained / "sedir" / "log"
    assert "config.yaml" in says({"a": tmp_path / "nowhere"})
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    shutil.copy(whole / "config.yaml", untrained)
    assert "untrained/checkpoints/last.ckpt: no such checkpoint" in says({"a": untrained})
    assert "mamba3dad/log: holds a Mamba3dAD" in says({"a": whole, "b": trained / "mamba3dad" / "log"})
    assert "gear/log: trained on gear alone" in says({"a": trained / "gear" / "log"})
    narrow = '--overrides={"model.detector.init_args.width": 16}'
    assert "other settings" in says({"a": whole}, narrow)
    fewer = '--overrides={"data.categories": ["gear"]}'
    assert "trained on flange, gear, but" in says({"a": whole}, fewer)
    abnormal = tmp_path / "abnormal"
    shutil.copytree(parts, abnormal, ignore=shutil.ignore_patterns("*positive*"))
    assert "no normal test cloud" in says({"a": whole}, f'--overrides={{"data.root": "{abnormal}"}}')
