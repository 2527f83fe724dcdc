"""What a trained SeDiR makes of whole clouds, for probes to learn from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from anomaly3d.data.dataset import Sample, collate
from anomaly3d.models.sedir import SeDiR
from anomaly3d.types import PointCloudBatch


class CloudFeatures(NamedTuple):
    """Features of n clouds from a frozen model in evaluation mode, so without jitter or dropout.

    Attributes:
        name: sample ids.
        category: index of each cloud's true category.
        error: mean over a cloud's tokens of the distance between a frozen token and its reconstruction, in the unit
            that the model rebuilds tokens in (see `TokenStandardiser`).
        rebuilt: mean of the reconstructed tokens.
        encoded: what a linear probe reads (Table S8): the encoder's context token `act`, and the encoder's base tokens
            pooled by `mean` and `max`; `act` is missing where the model has none.
        z: the global token; None where the model has none.
    """

    name: list[str]
    category: Int[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    rebuilt: Float[np.ndarray, "n D"]
    encoded: dict[str, Float[np.ndarray, "n W"]]
    z: Float[np.ndarray, "n W"] | None


@torch.inference_mode()
def cloud_features(detector: SeDiR, clouds: Dataset[Sample], device: torch.device, title: str) -> CloudFeatures:
    """Features of all clouds, in their order; `title` stands before the progress bar."""
    loader = DataLoader(clouds, batch_size=1, collate_fn=collate)
    found = [_features(detector, batch.to(device)) for batch in track(loader, title, console=Console(stderr=True))]
    z = [one.z for one in found if one.z is not None]
    return CloudFeatures(
        name=[name for one in found for name in one.name],
        category=np.concatenate([one.category for one in found]),
        error=np.concatenate([one.error for one in found]),
        rebuilt=np.concatenate([one.rebuilt for one in found]),
        encoded={kind: np.concatenate([one.encoded[kind] for one in found]) for kind in found[0].encoded},
        z=np.concatenate(z) if z else None,
    )


def _features(detector: SeDiR, batch: PointCloudBatch) -> CloudFeatures:
    assert batch.category is not None
    view = detector.scored_view(batch).view
    made = detector.reconstruct(view)
    encoded = {"act": made.encoded.act, "mean": made.encoded.base.mean(1), "max": made.encoded.base.amax(1)}
    return CloudFeatures(
        name=list(batch.sample_id),
        category=batch.category.cpu().numpy(),
        error=(made.tokens - view.base).norm(dim=-1).mean(1).double().cpu().numpy(),
        rebuilt=made.tokens.mean(1).double().cpu().numpy(),
        encoded={kind: tokens.cpu().numpy() for kind, tokens in encoded.items() if tokens is not None},
        z=None if made.z is None else made.z.cpu().numpy(),
    )
