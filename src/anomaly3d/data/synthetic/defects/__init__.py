"""The six kinds of defect, as operations on points with normals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from anomaly3d.data.synthetic.defects.bending import bending
from anomaly3d.data.synthetic.defects.broken import broken
from anomaly3d.data.synthetic.defects.bump import bump
from anomaly3d.data.synthetic.defects.common import THRESHOLD, Defect
from anomaly3d.data.synthetic.defects.crack import crack
from anomaly3d.data.synthetic.defects.hole import hole
from anomaly3d.data.synthetic.surface import DefectError, Surface

Kind = Literal["bulge", "concavity", "hole", "broken", "bending", "crak"]
"""The kinds under their names on disk; Anomaly-ShapeNet spells the crack without its second c."""

DEFECTS: dict[str, Callable[[Surface, np.random.Generator, float], Defect]] = {
    "bulge": partial(bump, sign=1.0),
    "concavity": partial(bump, sign=-1.0),
    "hole": hole,
    "broken": broken,
    "bending": bending,
    "crak": crack,
}

__all__ = ["DEFECTS", "THRESHOLD", "Defect", "DefectError", "Kind", "Surface", "apply_defect", "make_defect"]


def make_defect(
    surface: Surface,
    kind: Kind,
    rng: np.random.Generator,
    share: tuple[float, float] = (0.01, 0.10),
    accept: Callable[[Defect], float] = lambda defect: defect.share,
    size: float = 1.0,
    attempts: int = 40,
) -> Defect:
    """A defect of the given kind whose labelled share lies within `share`.

    The relative size starts at `size` (1 is typical) and is adapted from attempt to attempt. `accept` measures the
    share (of what a camera sees, for example); NaN turns a defect down whatever its size.

    Raises:
        DefectError: after `attempts` tries, with the last reason.
    """
    reason = "unknown"
    for _ in range(attempts):
        try:
            defect = DEFECTS[kind](surface, rng, size)
        except DefectError as error:
            reason = str(error)
            size = float(np.clip(size * rng.uniform(0.75, 1.1), 0.3, 4.0))
            continue
        labelled = accept(defect)
        if share[0] <= labelled <= share[1]:
            return defect
        reason = f"a labelled share of {labelled:.2%}"
        if np.isfinite(labelled):
            size = float(np.clip(size * (1.25 if labelled < share[0] else 0.8), 0.3, 4.0))
    raise DefectError(f"no {kind} after {attempts} attempts: {reason}")


def apply_defect(
    points: np.ndarray,
    normals: np.ndarray,
    kind: Kind,
    rng: np.random.Generator,
    share: tuple[float, float] = (0.01, 0.10),
) -> tuple[np.ndarray, np.ndarray]:
    """Put one defect on a plain cloud, without any mesh.

    Args:
        points: The cloud (N, 3) in any unit, at least 500 points spread about evenly.
        normals: Unit normals (N, 3) out of the material; `visibility.orient_outward` turns estimated ones.
        kind: One of the six kinds.
        rng: Decides place, size and shape.
        share: Least and greatest share of anomalous points in the result.

    Returns:
        The cloud with the defect (M, 3), in the input's dtype, and its mask (M,). M differs from N for
        `hole` and `broken`, which remove points and add new surface; other points keep their order.

    Raises:
        DefectError: where the cloud has no place for this kind.
    """
    diagonal = float(np.linalg.norm(np.ptp(points, axis=0)))
    surface = Surface(np.asarray(points, dtype=np.float64), np.asarray(normals, dtype=np.float64), diagonal)

    def count(defect: Defect) -> float:
        return float(defect.mask.mean())

    defect = make_defect(surface, kind, rng, share, accept=count)
    return defect.surface.points.astype(points.dtype), defect.mask
