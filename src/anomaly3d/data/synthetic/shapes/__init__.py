"""Categories of industrial parts; each instance is drawn within the tolerances of its category."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from anomaly3d.data.synthetic.shapes import fasteners, piping, plates, rotational
from anomaly3d.data.synthetic.shapes.solids import Tolerance

if TYPE_CHECKING:
    import trimesh
    from manifold3d import Manifold

# No underscores and no digits at the end: the names are parts of file names.
CATEGORIES: dict[str, Callable[[Tolerance], Manifold]] = {
    "bearing": rotational.bearing,
    "bracket": plates.bracket,
    "clamp": fasteners.clamp,
    "connector": plates.connector,
    "conrod": plates.conrod,
    "crankshaft": rotational.crankshaft,
    "elbow": piping.elbow,
    "flange": rotational.flange,
    "gear": rotational.gear,
    "heatsink": plates.heatsink,
    "hexbolt": fasteners.hexbolt,
    "hexnut": fasteners.hexnut,
    "hinge": fasteners.hinge,
    "housing": plates.housing,
    "pulley": rotational.pulley,
    "shaft": rotational.shaft,
    "spring": fasteners.spring,
    "tee": piping.tee,
    "valve": piping.valve,
    "wrench": plates.wrench,
}


def build_part(category: str, rng: np.random.Generator) -> trimesh.Trimesh:
    """One instance of a category: a watertight mesh in millimetres, centred on its bounding box."""
    import trimesh

    mesh = CATEGORIES[category](Tolerance(rng)).to_mesh()
    part = trimesh.Trimesh(np.asarray(mesh.vert_properties)[:, :3], np.asarray(mesh.tri_verts), process=False)
    part.apply_translation(-part.bounds.mean(axis=0))
    return part
