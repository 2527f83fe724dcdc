"""How often registration finds the pose, by the number of rotations that it starts from.

    python benchmarks/registration.py --data.scans datasets/real3d-ad

Per category the template is the first training cloud; what is registered are views of the last one, made as validation
clouds are, half of them with a defect: in the layout of Real3D-AD from one side, in any pose. Test clouds are never
opened. A pose counts as found where its residual is no more than `--tolerance` (of the cloud's radius) above the best
that any of the searches finds, among them one from other and more rotations. Prints a Markdown table.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from anomaly3d.models.components.one_by_one import order_of
from anomaly3d.models.components.pose_store import POSES
from anomaly3d.models.components.registration import RegistrationSettings, Template
from anomaly3d.ops.sphere import radius_about_mean
from bank_settings import held_out
from classical import header, is_of, row

REFERENCE: dict[str, Any] = {"rotations": 6000, "seed": 1}


def registration(
    data: dict[str, Path],
    rotations: list[int] | None = None,
    views: int = 8,
    tolerance: float = 0.0015,
    hypotheses: int = 20_000,
    seed: int = 0,
    categories: list[str] | None = None,
) -> None:
    """Print the table.

    Args:
        data: folders by name, each in one of the two public layouts, with two training clouds of each category or more.
        rotations: from which ICP starts; default [0, 500, 1000, 2000, 4000]. 0 is RANSAC alone.
        views: per category.
        tolerance: of the residual, in radii of the cloud.
        hypotheses: triples that RANSAC draws.
        seed: of the views.
        categories: default all.
    """
    os.environ.pop(POSES, None)  # a registration that lies on disk takes no time
    searches = {str(n): RegistrationSettings(hypotheses=hypotheses, rotations=n) for n in rotations or DEFAULT}
    searches["6000 others"] = RegistrationSettings(hypotheses=hypotheses, **REFERENCE)
    header("data", "category", "rotations", "found", "largest excess of the residual", "s per cloud")
    for label, root in data.items():
        with held_out(root, categories) as (train, last):
            last.val_normal, last.val_defective, last.val_seed = views - views // 2, views // 2, seed
            train.setup("fit")
            last.setup("fit")
            clouds, scans = list(train.train_dataloader()), list(last.val_dataloader())
            for category, name in enumerate(train.category_names):
                first = min((cloud for cloud in clouds if is_of(cloud, category)), key=lambda cloud: cloud.sample_id)
                mine = [scan.xyz[order_of(scan.xyz, "strict")] for scan in scans if is_of(scan, category)]
                residuals: dict[str, list[float]] = {}
                seconds: dict[str, float] = {}
                for which, settings in searches.items():
                    template = Template(first.xyz[order_of(first.xyz, "strict")], settings)
                    template.register(mine[0])  # what a template prepares once
                    start = time.perf_counter()
                    residuals[which] = [
                        template.search(xyz, template.as_it_stands(xyz)).residual / radius_about_mean(xyz)
                        for xyz in mine
                    ]
                    seconds[which] = (time.perf_counter() - start) / len(mine)
                best = [min(found) for found in zip(*residuals.values(), strict=True)]
                for which, found in residuals.items():
                    excess = [residual - least for residual, least in zip(found, best, strict=True)]
                    hits = sum(value <= tolerance for value in excess)
                    row(label, name, which, f"{hits} of {len(mine)}", f"{max(excess):.4f}", f"{seconds[which]:.1f}")


DEFAULT = [0, 500, 1000, 2000, 4000]


if __name__ == "__main__":
    auto_cli(registration, as_positional=False)
