"""Every recipe builds through the real command line's parser, and the README names files that exist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly3d.compare.grid import Method, expand
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.models.components.sampled_scoring import SampledScoring
from anomaly3d.models.mc3d_ad.mc3d_ad import MC3DAD
from anomaly3d.models.patchcore_point_mae import PatchCorePointMAE
from anomaly3d.models.simple3d import Simple3D

ROOT = Path(__file__).parents[1]
PRETRAINING = sorted((ROOT / "configs" / "experiment").glob("point_mae_*.yaml"))
PAPER = yaml.safe_load((ROOT / "configs/benchmark/baselines_paper.yaml").read_text())
METHODS = ("sedir", "mamba3dad", "mc3d-ad")
RECIPES = sorted(recipe for method in METHODS for recipe in (ROOT / "configs" / "experiment").glob(f"{method}_*.yaml"))
BASELINES = sorted(set((ROOT / "configs" / "experiment").glob("*.yaml")) - {*PRETRAINING, *RECIPES})
DATA_SETS = ("anomaly_shapenet", "real3d_ad", "synthetic")


FEATURES = {
    "sampling": "file",
    "voxel": 0.5,
    "normal_radius": 2.0,
    "feature_radius": 5.0,
    "feature_neighbours": 100,
    "orient": False,
    "propagate": "nearest",
}
STRIDES = {"bank_stride": 100, "test_stride": 500}
LARGEST = {"smooth": 1, "top_share": 0.0}  # no smoothing; the object's score is the largest of its points'
TOKENS = {"group_size": 128, "blocks": (2, 4, 6), "smooth": "none"}  # thirds of the shipped backbone's depth
TOKENS |= {"propagate": "nearest", "in_file_unit": True}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Template distance": LARGEST,
    "BTF(Raw)": {**FEATURES, **STRIDES, **LARGEST, "kind": "raw", "reweighting": 3},
    "BTF(FPFH)": {**FEATURES, **STRIDES, **LARGEST, "kind": "fpfh", "reweighting": 3},
    "PatchCore(FPFH)": {**FEATURES, **LARGEST, "kind": "fpfh", "two_banks": False, "coreset_size": 10_000},
    "PatchCore(FPFH+Raw)": {**FEATURES, **LARGEST, "kind": "fpfh", "two_banks": True, "coreset_size": 10_000},
    "PatchCore(PointMAE)": {**TOKENS, "register": True, "coreset_size": 10_000, "coreset_share": 1.0, "weighed": None},
    "M3DM(PointMAE)": {
        **TOKENS,
        "register": False,
        "coreset_size": 1_000_000,
        "coreset_share": 0.1,
        "weighed": 3,
    },
    "Reg3D-AD": {**TOKENS, "register": True, "coreset_size": 10_000, "coreset_share": 1.0, "weighed": None},
    "Simple3D": {
        **{"neighbours": (40, 80, 80, 120), "normal_neighbours": 10, "voxel_size": None},
        **{"num_groups": 4096, "group_size": 128, "coreset_share": 0.05, "coreset_size": 1_000_000},
        **{"samples": 1024, "smooth": 12, "top_share": None, "top_points": 80},
    },
    "MC3D-AD": {"register": True, "told_category": True, "group_size": 128, "test_masks": "drawn"},
}


def published(detector: Any) -> dict[str, Any]:
    """Of a detector under `paper`, the values that its publication or its public code states."""
    found: dict[str, Any] = {}
    if hasattr(detector, "features"):
        found |= {name: getattr(detector.features, name) for name in (*FEATURES, "kind")}
        names = ("reweighting", "coreset_size", "two_banks", *STRIDES)
        found |= {name: getattr(detector, name) for name in names if hasattr(detector, name)}
    if isinstance(detector.scoring, PointScoring):
        found |= {"smooth": detector.scoring.neighbours, "top_share": detector.scoring.top_share}
    if isinstance(detector, PatchCorePointMAE):
        found |= {"group_size": detector.patches.group_size, "blocks": detector.backbone_blocks}
        found |= {"smooth": detector.scoring.smooth, "register": detector.register_clouds}
        found |= {"coreset_size": detector.coreset_size, "coreset_share": detector.coreset_share}
        found |= {"weighed": detector.reweighting, "propagate": detector.scoring.propagate}
        found |= {"in_file_unit": detector.in_file_unit}
    if isinstance(detector, Simple3D):
        names = ("neighbours", "normal_neighbours", "voxel_size", "num_groups", "group_size")
        found |= {name: getattr(detector, name) for name in (*names, "coreset_share", "coreset_size")}
        assert isinstance(detector.scoring, SampledScoring)
        found |= {name: getattr(detector.scoring, name) for name in ("samples", "top_share", "top_points")}
        found |= {"smooth": detector.scoring.neighbours}
    if isinstance(detector, MC3DAD):
        found |= {"register": detector.placement is not None, "told_category": detector.told_category}
        found |= {"group_size": detector.patches.group_size, "test_masks": detector.test_masks}
    return found


def built(arguments: Sequence[str]) -> Any:
    """The detector of a command line of `anomaly3d fit`."""
    from anomaly3d.lit.cli import AnomalyCLI

    return AnomalyCLI([*arguments, "--trainer.logger=false", "--trainer.accelerator=cpu"], run=False).model.detector


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_its_size_is_the_part_s(recipe: Path) -> None:
    from anomaly3d.lit.cli import DataCLI

    cli = DataCLI(["--config", str(recipe)])
    method, rest = recipe.stem.split("_", 1)
    assert cli.config["trainer"]["logger"]["init_args"]["name"] == recipe.stem
    assert cli.config["data"]["init_args"]["categories"] == "all" or recipe.stem.endswith("per-category")
    size = "paper" if rest.startswith(("anomaly_shapenet", "real3d_ad")) else "tiny"
    part = yaml.safe_load((ROOT / f"configs/model/{method}_{size}.yaml").read_text())
    whole = yaml.safe_load(recipe.read_text())["model"]
    settings = part["detector"].pop("init_args")
    found = whole["detector"].pop("init_args")
    found.pop("voxel_size", None)  # in the unit of the data set's files
    if recipe.stem.startswith("mc3d-ad_real3d_ad"):
        assert found.pop("num_groups") == 4 * settings.pop("num_groups")  # published for each data set
    if "_real3d_ad_" in recipe.stem and method != "mc3d-ad":  # scans from one side, in any pose
        assert found.pop("register") is found.pop("complete") is True
        assert found.pop("resolution") == 0.0125
        assert found.pop("relative", False) == (method == "sedir")
    assert found == settings
    assert whole == part


@pytest.mark.parametrize("size", ["tiny", "paper"])
def test_adapters_are_below_a_twentieth_of_the_backbone(size: str) -> None:
    """Of the shipped backbone in both sizes, and of the paper's with the paper's state."""
    part = str(ROOT / f"configs/model/mamba3dad_{size}.yaml")
    recipe = ["--config", str(ROOT / "configs/experiment/mamba3dad_synthetic_unified.yaml"), "--model", part]
    base = [f"--model.detector.init_args.{setting}" for setting in ("backbone_weights=random", "backbone_size=base")]
    for more in ([], [*base, "--model.detector.init_args.state=256"]):
        detector = built([*recipe, *more])
        adapter, backbone = (sum(p.numel() for p in m.parameters()) for m in (detector.adapter, detector.backbone))
        assert 0 < adapter < 0.05 * backbone


def test_baseline_recipes_build_and_differ_in_their_data_and_neighbours_alone() -> None:
    from anomaly3d.lit.cli import DataCLI

    of_method: dict[str, list[tuple[str, dict]]] = {}
    for recipe in BASELINES:
        config = DataCLI(["--config", str(recipe)]).config
        method, rest = recipe.stem.split("_", 1)
        assert config["trainer"]["logger"]["init_args"]["name"] == recipe.stem
        assert config["trainer"]["max_epochs"] == 1
        assert config["data"]["init_args"]["categories"] == "all" or recipe.stem.endswith("per-category")
        model = config["model"].as_dict()
        if "fpfh" in method:  # scans from one side want fewer (benchmarks/results/classical.md)
            neighbours = model["detector"]["init_args"].pop("feature_neighbours")
            assert neighbours == (20 if rest.startswith("real3d_ad") else 100)
        of_method.setdefault(method, []).append((rest, model))
    assert len(of_method) == 9
    for entries in of_method.values():
        large = [model for rest, model in entries if not rest.startswith("synthetic")]
        small = [model for rest, model in entries if rest.startswith("synthetic")]
        assert all(model == large[0] for model in large)
        assert all(model == small[0] for model in small)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs" / "experiment").glob("m3dm-pointmae_*_unified.yaml")))
def test_a_recipe_of_m3dm_leaves_the_published_settings_to_the_protocol(recipe: Path) -> None:
    detector = built(["--config", str(recipe), "--model.detector.init_args.protocol", "paper"])
    assert detector.backbone_blocks == (2, 4, 6)
    if "synthetic" not in recipe.stem:
        assert (detector.patches.num_groups, detector.patches.group_size, detector.coreset_share) == (16384, 128, 0.1)


@pytest.mark.parametrize("method", PAPER["methods"])
def test_every_baseline_builds_under_paper(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if method == "MC3D-AD":  # registers, and says at once where it cannot
        pytest.importorskip("open3d", exc_type=ImportError)
    entry = PAPER["methods"][method]
    row = Method(Path(entry["config"]), entry.get("overrides", {}))
    run = next(expand({method: row}, ["unified"], [0], {"gear": ""}, PAPER["overrides"], tmp_path))
    detector = built(run.arguments)
    assert detector.protocol == "paper"
    assert published(detector) == PUBLISHED[method]


@pytest.mark.parametrize("method", ["patchcore-pointmae", "reg3dad", "m3dm-pointmae"])
@pytest.mark.parametrize("data", ["real3d_ad", "anomaly_shapenet"])
def test_recipes_of_full_size_have_the_published_patches_under_paper(method: str, data: str) -> None:
    recipe = ROOT / f"configs/experiment/{method}_{data}_unified.yaml"
    weights = ["--model.detector.init_args.backbone_weights=random", "--model.detector.init_args.backbone_size=base"]
    detector = built(["--config", str(recipe), "--model.detector.init_args.protocol", "paper", *weights])
    assert (detector.patches.num_groups, detector.patches.group_size) == (16384, 128)
    assert detector.backbone_blocks == (4, 8, 12)


@pytest.mark.parametrize("data", ["real3d_ad", "anomaly_shapenet"])
def test_recipes_of_simple3d_leave_the_published_settings_to_the_protocol(data: str) -> None:
    recipe = ["--config", str(ROOT / f"configs/experiment/simple3d_{data}_unified.yaml")]
    paper = ["--model.detector.init_args.protocol", "paper"]
    assert published(built([*recipe, *paper])) == PUBLISHED["Simple3D"]
    assert built(recipe).fixed_settings() == Simple3D().fixed_settings()
    if data == "real3d_ad":  # what the recipe's comment says to give
        more = ["--model.detector.init_args.voxel_size", "0.15", "--model.detector.init_args.top_share", "1"]
        settings = published(built([*recipe, *paper, *more]))
        assert settings == {**PUBLISHED["Simple3D"], "voxel_size": 0.15, "top_share": 1}


@pytest.mark.parametrize("recipe", PRETRAINING, ids=lambda path: path.stem)
def test_pretraining_recipe_builds_its_size(recipe: Path, tmp_path: Path) -> None:
    from anomaly3d.lit.pretrain_cli import PretrainingCLI

    cli = PretrainingCLI(["--config", str(recipe), "--output", str(tmp_path), "--trainer.precision", "32-true"])
    assert recipe.stem == f"point_mae_{cli.model.size}"
    assert cli.trainer.max_epochs == yaml.safe_load(recipe.read_text())["trainer"]["max_epochs"]
    assert cli.datamodule.stream.points >= max(cli.model.patch_sizes) / cli.model.max_share or cli.model.size == "base"


def test_every_method_has_a_recipe_for_every_data_set_and_setting() -> None:
    expected = {
        f"{method}_{data}_{setting}"
        for method in {*METHODS, *(recipe.stem.split("_")[0] for recipe in BASELINES)}
        for data in DATA_SETS
        for setting in ("unified", "per-category")
    }
    assert expected <= {recipe.stem for recipe in (*RECIPES, *BASELINES)}


@pytest.mark.parametrize(
    "part",
    [
        "model/sedir_tiny",
        "model/sedir_registered",
        "model/mamba3dad_tiny",
        "model/mc3d-ad_tiny",
        "trainer/four_gpus",
        "trainer/cpu",
    ],
)
def test_a_part_swaps_into_a_recipe(part: str) -> None:
    from anomaly3d.lit.cli import DataCLI

    kind, name = part.split("/")
    method = name.split("_")[0] if kind == "model" else "sedir"
    recipe = ROOT / f"configs/experiment/{method}_anomaly_shapenet_unified.yaml"
    cli = DataCLI(["--config", str(recipe), f"--{kind}", str(ROOT / f"configs/{part}.yaml")])
    wanted = yaml.safe_load((ROOT / f"configs/{part}.yaml").read_text())
    config = cli.config[kind]
    if kind == "model":
        assert config["lr"] == wanted["lr"]
        wanted, config = wanted["detector"]["init_args"], config["detector"]["init_args"]
    assert {key: config[key] for key in wanted} == wanted


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b(?:configs|benchmarks|docs|src)/[\w./-]+\.(?:yaml|py|png|md)\b", text))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_registered_part_is_the_tiny_one_but_for_how_clouds_are_seen_and_scored() -> None:
    tiny, registered = (
        yaml.safe_load((ROOT / f"configs/model/sedir_{name}.yaml").read_text()) for name in ("tiny", "registered")
    )
    settings, ours = (part["detector"].pop("init_args") for part in (tiny, registered))
    assert tiny == registered
    assert {name for name in ours if ours[name] != settings.get(name)} == {
        *("num_groups", "group_size", "register", "complete", "resolution", "relative", "offset_share"),
    }
    assert settings.keys() <= ours.keys()
