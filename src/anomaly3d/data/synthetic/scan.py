"""From a dense surface to a scan: what the camera sees, how densely, in which pose and with which noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from anomaly3d.data.synthetic.defects import Defect
from anomaly3d.data.synthetic.surface import Surface
from anomaly3d.data.synthetic.visibility import directions, visible_points

View = Literal["full", "single"]
Pose = Literal["aligned", "small", "arbitrary"]

VIEWS = 10
"""Random camera directions tried for one cloud [ours]."""


@dataclass(frozen=True)
class Seen:
    """What a camera in `direction` (3,) sees.

    `density` (N,) of points on the scan: 0 for hidden ones, the cosine of the slant for others.
    """

    direction: np.ndarray
    density: np.ndarray

    @staticmethod
    def along(surface: Surface, direction: np.ndarray, spacing: float) -> Seen:
        """Look at a surface along -direction; a scanner's points are even in its image, so slant thins them out."""
        seen = visible_points(surface.points, surface.normals, direction, spacing)
        return Seen(direction, np.where(seen, np.maximum(surface.normals @ direction, 0.1), 0.0))

    def share(self, defect: Defect) -> float:
        """Labelled share of the points that a scan from here will have; NaN where it sees nothing."""
        weight = self.density * defect.weight
        return float(weight[defect.mask].sum() / weight.sum()) if weight.any() else np.nan


def choose_view(defect: Defect, rng: np.random.Generator, share: tuple[float, float]) -> Seen:
    """A random view that shows the defect: within `share`, and at least 60 % as much of it as the best view does.

    If no view has a share within the limits, the one that shows most of the defect (its share is outside them).
    """
    spacing = defect.surface.spacing
    views = [Seen.along(defect.surface, direction, spacing) for direction in directions(VIEWS, rng)]
    shown = [float((view.density * defect.weight)[defect.mask].sum()) for view in views]
    good = [
        view
        for view, part in zip(views, shown, strict=True)
        if part >= 0.6 * max(shown) and share[0] <= view.share(defect) <= share[1]
    ]
    return good[rng.integers(len(good))] if good else views[int(np.argmax(shown))]


def thin(density: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (count,) drawn without replacement with probabilities in proportion to `density` (N,)."""
    candidates = np.flatnonzero(density)
    if len(candidates) < count:
        raise ValueError(f"{len(candidates)} points are seen, {count} are wanted")
    keys = rng.exponential(size=len(candidates)) / density[candidates]
    return candidates[np.argpartition(keys, count - 1)[:count]]


def draw_pose(pose: Pose, diagonal: float, rng: np.random.Generator) -> tuple[Rotation, np.ndarray]:
    """Rotation and shift of one cloud.

    `aligned`: none; `small`: at most 5 degrees about a random axis and 1 % of the diagonal along each axis, about as
    in Anomaly-ShapeNet; `arbitrary`: any rotation and half the diagonal, as in Real3D-AD.
    """
    axis, angle, quaternion, shift = rng.normal(size=3), rng.uniform(0, 5), rng.normal(size=4), rng.uniform(-1, 1, 3)
    if pose == "aligned":
        return Rotation.identity(), np.zeros(3)
    if pose == "small":
        return Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis)), 0.01 * diagonal * shift
    return Rotation.from_quat(quaternion), 0.5 * diagonal * shift
