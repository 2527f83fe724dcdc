"""The endless stream: cloud i follows from (seed, i) alone, whoever draws it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.utils.data import Dataset

from anomaly3d.data.procedural.sampling import Mesh
from anomaly3d.data.procedural.shapes import random_shape

SHAPE, VIEW, PROBE = range(3)
"""Last number of a generator's seed: what it draws. Streams of different purposes never meet."""

_ONE_SIDED, _UNEVEN, _NOISY = 0.25, 0.5, 0.5
"""Shares of the clouds."""


class ProceduralClouds(Dataset[Tensor]):
    """Clouds (points, 3), float32, zero mean and unit radius, points in random order; as many as anyone asks for.

    `views` successive clouds show the same shape, each with its own rotation, stretch, points, density, side and
    noise: asked for one after the other, they share the cost of building it.

    Args:
        points: points per cloud.
        seed: what to draw; not negative.
        views: clouds per shape.
    """

    def __init__(self, points: int = 8192, seed: int = 0, views: int = 4) -> None:
        if min(points - 1, seed, views - 1) < 0:
            raise ValueError(f"{points} points, seed {seed}, {views} views: out of range")
        self.points, self.seed, self.views = points, seed, views

    def __getitem__(self, index: int) -> Float[Tensor, "N 3"]:
        mesh = _shape(self.seed, index // self.views)
        return view(mesh, self.points, np.random.default_rng([self.seed, index, VIEW]))


def view(mesh: Mesh, points: int, rng: np.random.Generator) -> Float[Tensor, "N 3"]:
    """A cloud of the mesh: stretched, turned, scanned, with noise; zero mean and unit radius."""
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    posed = Mesh((mesh.vertices * rng.uniform(0.7, 1.3, 3)) @ turn.T, mesh.faces)
    camera = rng.normal(size=3) if rng.random() < _ONE_SIDED else None
    if rng.random() < _UNEVEN:
        wave, phase, ratio = rng.normal(size=3), rng.uniform(0, 2 * np.pi), np.log(rng.uniform(1.3, 3))
        xyz = posed.sample_unevenly(points, rng, lambda x: np.exp(ratio / 2 * (np.sin(x @ wave + phase) - 1)), camera)
    else:
        xyz, _ = posed.sample(points, rng, camera)
    xyz = normalise(xyz)
    if rng.random() < _NOISY:
        sigma = np.exp(rng.uniform(np.log(1e-4), np.log(5e-3)))
        xyz = normalise(xyz + sigma * rng.standard_normal(xyz.shape))
    return torch.from_numpy(xyz.astype(np.float32))


def normalise(xyz: np.ndarray) -> np.ndarray:
    """Points (N, 3) moved to zero mean and scaled to unit radius."""
    xyz = xyz - xyz.mean(axis=0)
    return xyz / np.sqrt(np.einsum("ij,ij->i", xyz, xyz).max())


@lru_cache(maxsize=2)
def _shape(seed: int, index: int) -> Mesh:
    return Mesh(*random_shape(np.random.default_rng([seed, index, SHAPE])))
