"""The report of an ICE analysis: table, numbers of every cloud, and two pictures."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from anomaly3d.files import write_text
from anomaly3d.ice.features import CloudFeatures
from anomaly3d.ice.probes import Entanglement, embed_in_plane
from anomaly3d.report.scatter import Panel, scatter_panels
from anomaly3d.report.tables import Table, percent, provenance_line

PAPER_PROBES = {"act": 0.973, "mean": 0.781, "max": 0.773}
"""Accuracy of the paper's linear probes by what they read (Table S8)."""

_SMALLEST = 1e-6  # probabilities nearer to 0 or 1 are drawn there


class Analysis(NamedTuple):
    """One model's part of the report."""

    provenance: Mapping[str, object]
    categories: tuple[str, ...]
    train_category: Int[np.ndarray, " m"]
    train_z: Float[np.ndarray, "m W"] | None
    test: CloudFeatures
    found: Entanglement


def ice_table(analyses: Mapping[str, Analysis]) -> Table:
    """A row per model, and the paper's."""
    rows = [
        [
            name,
            f"{one.test.error.mean():.2f}",
            percent(one.found.accuracy),
            _signed(one.found.pearson),
            _signed(one.found.spearman),
            _signed(one.found.between),
            _signed(one.found.within),
            percent(one.found.score.min()),
            *(percent(one.found.linear.get(kind, nan)) for kind in PAPER_PROBES),
        ]
        for name, one in analyses.items()
    ]
    return Table(
        ["model", "error", "accuracy", "Pearson", "Spearman", "between", "within", "lowest", *PAPER_PROBES],
        [*rows, ["paper", *["–"] * 7, *map(percent, PAPER_PROBES.values())]],
        footer=[
            "Of the normal test clouds: mean distance of a token to its reconstruction; percent whose category an MLP "
            "names from the mean reconstructed token; correlation of its probability for the true category with the "
            "cloud's error, Spearman's also between the categories' means and within a category on average, and the "
            "lowest of these probabilities; percent whose category a linear probe names from the frozen encoder's "
            "context token (act) or pooled base tokens (mean, max).",
            *(
                f"{name}: {len(one.test.name)} clouds of {len(one.categories)} categories · "
                f"{provenance_line(one.provenance)}"
                for name, one in analyses.items()
            ),
        ],
        title="Inter-category entanglement",
    )


def write_report(analyses: Mapping[str, Analysis], output: Path, seed: int = 0) -> list[Path]:
    """Write `ice.md`, `ice.csv` (fractions), `clouds.csv`, `scores.png` and `global_tokens.png`; returns the paths.

    A model without a global token has no panel in `global_tokens.png`; if none has one, there is no such picture.
    """
    (categories,) = {one.categories for one in analyses.values()}
    summary = pd.DataFrame({"model": name, **_summary(one)} for name, one in analyses.items())
    clouds = pd.concat([_clouds(name, one) for name, one in analyses.items()])
    scores = [_score_panel(name, one) for name, one in analyses.items()]
    tokens = [_token_panel(name, one, seed) for name, one in analyses.items() if one.train_z is not None]

    scored, embedded = output / "scores.png", output / "global_tokens.png"
    pictures = {scored: "Category score and reconstruction error of each normal test cloud (Fig. 2)"}
    kinds = ("category recognised", "taken for another")
    axes = ("probability of the true category", "mean reconstruction error")
    scatter_panels(scores, categories, kinds, scored, axes, logit=True)
    if tokens:
        pictures[embedded] = "t-SNE of the global tokens"
        scatter_panels(tokens, categories, ("training clouds", "normal test clouds"), embedded)
    texts = {
        "ice.md": "\n".join(
            [
                ice_table(analyses).markdown(),
                *(f"![{text}]({path.name})\n\n{text}.\n" for path, text in pictures.items()),
            ]
        ),
        "ice.csv": summary.to_csv(index=False),
        "clouds.csv": clouds.to_csv(index=False),
    }
    return [*(write_text(output / name, text) for name, text in texts.items()), *pictures]


def _signed(coefficient: float) -> str:
    return "–" if np.isnan(coefficient) else f"{coefficient:+.2f}".replace("-", "−")


def _summary(one: Analysis) -> dict[str, object]:
    found = one.found
    return {
        "clouds": len(one.test.name),
        "categories": len(one.categories),
        "error": one.test.error.mean(),
        "accuracy": found.accuracy,
        "pearson": found.pearson,
        "spearman": found.spearman,
        "between": found.between,
        "within": found.within,
        "lowest": found.score.min(),
        **{f"probe_{kind}": found.linear.get(kind, nan) for kind in PAPER_PROBES},
        **one.provenance,
    }


def _clouds(name: str, one: Analysis) -> pd.DataFrame:
    names = np.array(one.categories)
    return pd.DataFrame(
        {
            "model": name,
            "sample_id": one.test.name,
            "category": names[one.test.category],
            "predicted": names[one.found.predicted],
            "score": one.found.score,
            "error": one.test.error,
        }
    )


def _score_panel(name: str, one: Analysis) -> Panel:
    found = one.found
    title = f"{name}\naccuracy {percent(found.accuracy)} %, Spearman {_signed(found.spearman)}"
    wrong = (found.predicted != one.test.category).astype(int)
    score = found.score.clip(_SMALLEST, 1 - _SMALLEST)
    return Panel(title, np.column_stack([score, one.test.error]), one.test.category, wrong)


def _token_panel(name: str, one: Analysis, seed: int) -> Panel:
    assert one.train_z is not None
    assert one.test.z is not None
    split = np.repeat([0, 1], [len(one.train_z), len(one.test.z)])
    category = np.concatenate([one.train_category, one.test.category])
    plane = embed_in_plane(np.concatenate([one.train_z, one.test.z]), len(one.categories), seed)
    return Panel(name, plane, category, split)
