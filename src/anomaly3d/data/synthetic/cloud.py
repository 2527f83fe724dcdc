"""One cloud of the data set, from its seed: part, surface, defect, scan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from anomaly3d.data.synthetic.defects import Defect, DefectError, Kind, make_defect
from anomaly3d.data.synthetic.scan import Pose, Seen, View, choose_view, draw_pose, thin
from anomaly3d.data.synthetic.shapes import build_part
from anomaly3d.data.synthetic.surface import Surface, sample_surface

SHARE = (0.01, 0.10)
"""Least and greatest share of anomalous points of a defective cloud."""

# The share of the dense surface keeps this distance from the limits, so that thinning rarely crosses them.
_DENSE_SHARE = (0.0125, 0.092)
_PARTS = 8
# One camera sees about half of a part, so that a defect fills twice its share of the whole.
_SINGLE_SIZE = 0.5


@dataclass(frozen=True)
class CloudPlan:
    """What to make: `kind` None is a normal part; `name` tells clouds of one category and split apart."""

    category: str
    split: str
    name: str
    kind: Kind | None

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return f"{self.category}_{self.name}"


@dataclass(frozen=True)
class ScanSettings:
    """How clouds are scanned; the fields are the arguments of `generate`."""

    points: int | tuple[int, int]
    view: View
    noise: float
    pose: Pose


@dataclass(frozen=True)
class SyntheticCloud:
    """Points (N, 3) in millimetres as float32, anomaly mask (N,), and the record for `provenance.json`."""

    xyz: np.ndarray
    mask: np.ndarray
    record: dict[str, Any]


def make_cloud(plan: CloudPlan, settings: ScanSettings, seed: int) -> SyntheticCloud:
    """The cloud that `plan`, `settings` and `seed` determine, whatever else is made.

    A part on which the kind finds no place is discarded for another instance of its category.

    Raises:
        DefectError: if none of several instances takes the defect.
    """
    streams = child_seed(seed, plan.category, plan.split, plan.name).spawn(_PARTS)
    for stream in streams:
        try:
            return _make(plan, settings, [np.random.default_rng(child) for child in stream.spawn(4)])
        except DefectError as error:
            reason = error
    raise DefectError(f"{plan.stem} (seed {seed}): {reason}")


def child_seed(seed: int, *key: str) -> np.random.SeedSequence:
    """A seed that depends on `seed` and the key only, on every platform and in every process."""
    digest = hashlib.sha256("/".join([str(seed), *key]).encode()).digest()
    return np.random.SeedSequence(int.from_bytes(digest[:16], "little"))


def _make(plan: CloudPlan, settings: ScanSettings, streams: list[np.random.Generator]) -> SyntheticCloud:
    part_rng, surface_rng, defect_rng, scan_rng = streams
    low, high = (settings.points, settings.points) if isinstance(settings.points, int) else settings.points
    count = int(scan_rng.integers(low, high + 1))
    # Templates are complete, as in Real3D-AD, whose test clouds are single views too.
    single = settings.view == "single" and plan.split == "test"
    dense = max(8 * count, 50_000) if single else max(4 * count, 20_000)
    mesh = build_part(plan.category, part_rng)
    surface = sample_surface(mesh, dense, surface_rng)
    defect, seen = _defective(surface, plan.kind, defect_rng, scan_rng, count, single)
    density = defect.weight if seen is None else defect.weight * seen.density

    for _ in range(20):
        chosen = thin(density, count, scan_rng)
        mask = defect.mask[chosen]
        if plan.kind is None or SHARE[0] <= mask.mean() <= SHARE[1]:
            break
    else:
        raise DefectError("thinning leaves the limits of the labelled share")

    sigma = settings.noise * scan_rng.uniform(0.5, 1.5)
    rotation, shift = draw_pose(settings.pose, surface.diagonal, scan_rng)
    xyz = defect.surface.points[chosen] + scan_rng.normal(scale=sigma * surface.diagonal, size=(count, 3))
    xyz = (xyz @ rotation.as_matrix().T + shift).astype(np.float32)
    record = {
        "file": f"{plan.category}/{plan.split}/{plan.stem}.pcd",
        "category": plan.category,
        "kind": plan.kind or "good",
        "points": count,
        "labelled": round(float(mask.mean()), 6),
        "diagonal_mm": round(surface.diagonal, 4),
        "noise_diagonals": round(float(sigma), 7),
        "quaternion_xyzw": np.round(rotation.as_quat(), 7).tolist(),
        "shift_mm": np.round(shift, 5).tolist(),
        "camera": None if seen is None else np.round(seen.direction, 6).tolist(),
        "defect": {name: round(value, 6) for name, value in defect.parameters.items()},
    }
    return SyntheticCloud(xyz, mask, record)


def _defective(
    surface: Surface,
    kind: Kind | None,
    defect_rng: np.random.Generator,
    scan_rng: np.random.Generator,
    count: int,
    single: bool,
) -> tuple[Defect, Seen | None]:
    """The surface with its defect (none for a normal part) and, for a single view, what the camera sees."""
    intact = Defect(surface, np.zeros(len(surface.points), dtype=bool), np.ones(len(surface.points)), {})
    if not single:
        return (intact if kind is None else make_defect(surface, kind, defect_rng, _DENSE_SHARE)), None

    # A normal part is seen from where a defect would have shown, else the choice of the view would tell the label.
    kinds = get_args(Kind)
    phantom = kinds[int(defect_rng.integers(len(kinds)))]
    views: list[Seen] = []

    def visible_share(defect: Defect) -> float:
        view = choose_view(defect, scan_rng, _DENSE_SHARE)
        views.append(view)
        return view.share(defect) if np.count_nonzero(view.density) > 1.2 * count else np.nan

    defect = make_defect(surface, kind or phantom, defect_rng, _DENSE_SHARE, accept=visible_share, size=_SINGLE_SIZE)
    if kind is not None:
        return defect, views[-1]
    view = Seen.along(surface, views[-1].direction, surface.spacing)
    if np.count_nonzero(view.density) < 1.2 * count:
        raise DefectError("too little of the part is seen")
    return intact, view
