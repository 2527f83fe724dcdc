"""What settings that are not learned are worth on validation clouds, for trained detectors.

    python benchmarks/scoring.py --runs.SeDiR runs/sedir_synthetic_unified/version_0

`runs` are log folders of `anomaly3d fit` or finished runs of `anomaly3d compare`, of one data set or of several. The
width of the smoothing (`smooth_sigma`), or any other setting that weights do not depend on, and the object's score: the
same weights are scored with each value, and each cloud once for all object scores. Validation clouds are made from the
training clouds; test clouds are never opened. Prints a Markdown table, means over categories in percent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from anomaly3d.lit.trained import load_trained
from anomaly3d.metrics.evaluator import Evaluator
from anomaly3d.models.components.point_scoring import PointScoring
from anomaly3d.types import AnomalyPrediction, PointCloudBatch
from classical import registered_once


def scoring(
    runs: dict[str, Path],
    setting: str = "smooth_sigma",
    settings: list[int | float | bool | str | None] | None = None,
    shares: list[float] | None = None,
    normal: int = 6,
    defective: int = 12,
    rotation: float | None = None,
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Score validation clouds with every value of a setting, and every object score.

    Args:
        runs: trained detectors by the name that they get in the table.
        setting: of the detector.
        settings: its values; default [0.1, 0.5, 1, 2, 3], which suits `smooth_sigma`: the first is as good as none.
        shares: of a cloud's points whose mean is its score; 0 is the largest; default [0, 0.001, 0.01, 0.05].
        normal: normal clouds per category.
        defective: defective clouds per category.
        rotation: largest angle of a validation cloud's pose; default the recipe's.
        seed: of the validation clouds.
        overrides: values for all models by dotted key.
    """
    print(f"| detector | {setting} | share | O-AUROC | P-AUROC | P-AUPR |\n|" + " :-- |" * 3 + " --: |" * 3, flush=True)
    values = {"data.val_normal": normal, "data.val_defective": defective, "data.val_seed": seed, **(overrides or {})}
    if rotation is not None:
        values["data.val_rotation"] = rotation
    with registered_once():
        for name, run in runs.items():
            for value in settings or [0.1, 0.5, 1.0, 2.0, 3.0]:
                changed = values | {f"model.detector.init_args.{setting}": value}
                of_shares = evaluate(run, changed, shares or [0.0, 0.001, 0.01, 0.05])
                for share, mean in of_shares.items():
                    cells = (f"{100 * mean[metric]:.1f}" for metric in ("o_auroc", "p_auroc", "p_aupr"))
                    print(f"| {name} | {value} | {share:g} | {' | '.join(cells)} |", flush=True)


def evaluate(run: Path, values: dict[str, Any], shares: list[float]) -> dict[float, dict[str, float]]:
    """Means over categories by share, of one run with changed values."""
    model = load_trained(run, values)
    model.data.setup("fit")
    evaluators = {share: Evaluator(model.data.category_names, exact=True, replicates=0) for share in shares}
    batches: list[PointCloudBatch] = list(model.data.val_dataloader())
    with torch.no_grad():
        for batch in batches:
            points = model.detector.score(batch.to(model.device)).point_scores.cpu()
            clouds = batch.split(points)
            for share, evaluator in evaluators.items():
                objects = torch.stack([PointScoring(top_share=share).object(scores) for scores in clouds])
                evaluator.update(AnomalyPrediction(points, objects), batch)
    return {share: evaluator.compute().mean for share, evaluator in evaluators.items()}


if __name__ == "__main__":
    auto_cli(scoring, as_positional=False)
