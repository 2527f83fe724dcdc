"""`anomaly3d ice`: how far the categories of a unified SeDiR are entangled, from trained models to a report."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset

from anomaly3d.data.dataset import CloudDataset
from anomaly3d.data.validation import ValidationDataset
from anomaly3d.errors import InputError, check_range
from anomaly3d.ice.features import cloud_features
from anomaly3d.ice.probes import entanglement
from anomaly3d.ice.report import Analysis, ice_table, write_report
from anomaly3d.lit.trained import Trained, load_trained
from anomaly3d.models.sedir import SeDiR
from anomaly3d.report.tables import table_console

_SETTINGS = ("global_token", "contrastive_weight", "cosine_weight", "class_weight")


def ice(
    runs: dict[str, Path],
    output: Path,
    views: int = 16,
    probe_hidden: int = 64,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Measure the inter-category entanglement (ICE) of trained SeDiR models; write a report with pictures.

    As in Fig. 2 of the paper, a light MLP learns the category from the mean reconstructed token of clouds; its
    accuracy on the normal test clouds, and the correlation of its probability for the true category with a cloud's
    mean reconstruction error, tell whether clouds are rebuilt as something of another category. Linear probes read
    the frozen encoder (Table S8), and t-SNE shows the global tokens.

    Probes are fitted on the training clouds and, as four clouds teach a probe little, on altered normal views of
    them, made as validation clouds are [ours]. Test clouds are only looked at: nothing is chosen by them.

    Args:
        runs: trained models by the name they get in the report: the log folder that `anomaly3d fit` left
            (runs/<recipe>/version_N), or the folder of a finished run of `anomaly3d compare`. Give the model without
            C3L, with contrastive_weight, cosine_weight and class_weight at 0, beside the whole one.
        output: folder of the report: `ice.md`, `ice.csv`, `clouds.csv`, `scores.png`, `global_tokens.png`.
        views: altered views per category.
        probe_hidden: units of the MLP's hidden layer [inferred].
        seed: of the views, of the MLP and of t-SNE.
        overrides: values for all models by dotted key, e.g. `{data.root: DIR}` where the data have moved.

    Raises:
        InputError: a folder holds no training, another detector or a model of one category; the models' categories
            differ; or there is no normal test cloud.
    """
    if not runs:
        raise InputError(
            "runs: none given; name at least one, e.g. --runs.SeDiR runs/sedir_synthetic_unified/version_0"
        )
    check_range(0, inf, views=views, seed=seed)
    check_range(1, inf, probe_hidden=probe_hidden)
    trained = {name: load_trained(folder, overrides) for name, folder in runs.items()}
    first = next(iter(runs))
    for name, model in trained.items():
        _check(model, runs[name])
        if model.detector.categories != trained[first].detector.categories:
            raise InputError(f"{runs[name]}: trained on other categories than {runs[first]}; compare them one by one")
    analyses = {name: _analyse(name, model, views, probe_hidden, seed) for name, model in trained.items()}
    table_console().print(ice_table(analyses).console())
    print("written:", *write_report(analyses, output, seed), sep="\n  ")


def _check(model: Trained, folder: Path) -> None:
    """Raise InputError unless this is a SeDiR of several categories, the same as in its data."""
    categories = model.detector.categories
    if not isinstance(model.detector, SeDiR):
        raise InputError(f"{folder}: holds a {type(model.detector).__name__}; give trainings of SeDiR")
    if len(categories) < 2:
        raise InputError(
            f"{folder}: trained on {', '.join(categories)} alone; give a unified model, of several categories"
        )
    model.data.setup()
    if model.data.category_names != categories:
        raise InputError(
            f"{folder}: trained on {', '.join(categories)}, but {model.data.root} has "
            f"{', '.join(model.data.category_names)}; set data.categories in `overrides` to the former"
        )


def _analyse(name: str, model: Trained, views: int, hidden: int, seed: int) -> Analysis:
    detector, data, device = model.detector, model.data, model.device
    assert isinstance(detector, SeDiR)
    names = data.category_names
    normal = [record for record in data.records("test") if record.label == 0]
    if not normal:
        raise InputError(f"{data.root}: no normal test cloud, of which the analysis is")
    train = CloudDataset(data.records("train"), names, data.reader, with_masks=False)
    altered = ValidationDataset(data.records("train"), names, data.reader, views, 0, data.view_settings, seed)
    test = CloudDataset(normal, names, data.reader, with_masks=False)
    fitted = cloud_features(detector, ConcatDataset([train, altered]), device, f"{name}, training clouds and views")
    tested = cloud_features(detector, test, device, f"{name}, normal test clouds")
    provenance = {
        "data": data.root.name,
        "seed": model.config["seed_everything"],
        "epochs": model.epochs,
        "protocol": detector.protocol,
        **{key: model.config["model"]["detector"]["init_args"][key] for key in _SETTINGS},
    }
    z_train = None if fitted.z is None else fitted.z[: len(train)]
    return Analysis(
        provenance, names, fitted.category[: len(train)], z_train, tested, entanglement(fitted, tested, seed, hidden)
    )
