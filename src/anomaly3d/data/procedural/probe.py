"""Labelled clouds for linear probes: a class is one random shape, an instance a deformation of it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from anomaly3d.data.procedural.deform import deform, to_unit
from anomaly3d.data.procedural.sampling import Mesh
from anomaly3d.data.procedural.shapes import random_solid, refined
from anomaly3d.data.procedural.stream import PROBE, normalise

_STRENGTH = 0.7
_TILT = 15.0
"""Most degrees an instance is turned about each axis."""


def labelled_clouds(
    classes: int, per_class: int, points: int, seed: int
) -> tuple[Float[Tensor, "C*n N 3"], Int[Tensor, " C*n"]]:
    """Clouds of zero mean and unit radius, class by class, and their classes; no seed shows the stream's shapes.

    Instances are deformed, scaled by 0.8 to 1.25 along each axis, turned a little and sampled anew.
    Adding instances or classes leaves the others as they were.
    """
    clouds = []
    for label in range(classes):
        mesh = refined(random_solid(np.random.default_rng([seed, label, PROBE])))
        for instance in range(per_class):
            # From one, as a last number of zero would be no other seed than the class's own.
            clouds.append(_instance(mesh, points, np.random.default_rng([seed, label, PROBE, instance + 1])))
    return torch.stack(clouds), torch.arange(classes).repeat_interleave(per_class)


def _instance(mesh: Mesh, points: int, rng: np.random.Generator) -> Float[Tensor, "N 3"]:
    vertices = to_unit(deform(mesh.vertices, rng, _STRENGTH)) * np.exp(rng.uniform(-1, 1, 3) * np.log(1.25))
    turn = Rotation.from_euler("xyz", rng.uniform(-_TILT, _TILT, 3), degrees=True).as_matrix()
    xyz, _ = Mesh(vertices @ turn.T, mesh.faces).sample(points, rng)
    return torch.from_numpy(normalise(xyz).astype(np.float32))
