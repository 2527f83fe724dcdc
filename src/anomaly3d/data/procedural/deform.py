"""Smooth deformations of a whole shape: of vertices (V, 3) within the unit ball around the origin."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def deform(vertices: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """One to three deformations of random kinds and axes, none of which turns the surface inside out.

    `strength` scales their extent; 1 is the most that is safe.
    """
    kinds = (_taper, _twist, _bend, _stretch, _ripple)
    for kind in rng.permutation(len(kinds))[: rng.integers(1, 4)]:
        frame = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        # Along the shape's own axes in half of the cases: a twisted bar looks unlike a sheared one.
        frame = frame if rng.random() < 0.5 else np.eye(3)[rng.permutation(3)]
        vertices = kinds[kind](to_unit(vertices) @ frame.T, rng, strength) @ frame
    return vertices


def to_unit(vertices: np.ndarray) -> np.ndarray:
    """Vertices moved and scaled into the unit ball: bounding box about the origin, the farthest at radius 1."""
    vertices = vertices - (vertices.max(axis=0) + vertices.min(axis=0)) / 2
    return vertices / np.sqrt(np.einsum("ij,ij->i", vertices, vertices).max())


def _taper(v: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Wider at one end of z than at the other."""
    return v * np.stack([1 + rng.uniform(-0.5, 0.5) * strength * v[:, 2]] * 2 + [np.ones(len(v))], axis=1)


def _twist(v: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Turned about z, by up to 60 degrees from the middle to the end."""
    angle = rng.uniform(-np.pi / 3, np.pi / 3) * strength * v[:, 2]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * v[:, 0] - sin * v[:, 1], sin * v[:, 0] + cos * v[:, 1], v[:, 2]], axis=1)


def _bend(v: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The z axis becomes an arc in the xz plane; its radius stays beyond the unit ball."""
    radius = 1 / (rng.uniform(0.1, 0.8) * strength)
    reach, angle = radius - v[:, 0], v[:, 2] / radius
    return np.stack([radius - reach * np.cos(angle), v[:, 1], reach * np.sin(angle)], axis=1)


def _stretch(v: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    return v * np.exp(rng.uniform(-0.5, 0.5, 3) * strength)


def _ripple(v: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Moved by a field of a few long waves; its slope stays below one, so that nothing folds over."""
    waves = rng.normal(size=(3, 4)) * rng.uniform(1, 3)
    slope = np.linalg.norm(waves, axis=0)
    direction = rng.normal(size=(4, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    height = rng.uniform(0.03, 0.2) * strength / slope[:, None]
    return v + np.sin(v @ waves + rng.uniform(0, 2 * np.pi, 4)) @ (direction * height)
