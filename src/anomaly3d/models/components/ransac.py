"""RANSAC over point correspondences (Fischler and Bolles, 1981): many hypotheses at once, repeatable."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

Poses = Float64[np.ndarray, "H 4 4"]


def ransac_poses(
    source: Float64[np.ndarray, "n 3"],
    target: Float64[np.ndarray, "n 3"],
    reach: float,
    hypotheses: int,
    keep: int,
    seed: int,
    similarity: float = 0.9,
) -> Poses:
    """The `keep` rigid poses that bring most of the corresponding points within `reach`, best first.

    A hypothesis is a triple of correspondences. It is dropped unless the sides of its two triangles agree (the shorter
    at least `similarity` of the longer) and are longer than `reach`, below which they say nothing about a rotation.
    Fewer than `keep` poses, possibly none, are returned where fewer hypotheses survive.

    Args:
        source: points, row by row the counterparts of `target`.
        target: where they should go.
        reach: in the unit of the points.
        hypotheses: triples that are drawn.
        keep: poses that are returned at most.
        seed: of the triples.
        similarity: ratio of the sides, in [0, 1].
    """
    triples = np.random.default_rng(seed).integers(0, len(source), (hypotheses, 3))
    corners, goals = source[triples], target[triples]
    sides, wanted = (np.linalg.norm(t - np.roll(t, 1, axis=1), axis=2) for t in (corners, goals))
    short, long = np.minimum(sides, wanted), np.maximum(sides, wanted)
    alike = ((short > similarity * long) & (short > reach)).all(1)
    poses = kabsch(corners[alike], goals[alike])
    inliers = np.empty(len(poses), np.int64)
    for i in range(0, len(poses), 256):  # in pieces: hypotheses times points
        part = poses[i : i + 256]
        inliers[i : i + 256] = (np.square(moved(source, part) - target).sum(2) < reach**2).sum(1)
    return poses[np.argsort(-inliers, kind="stable")[:keep]]


def moved(points: Float64[np.ndarray, "n 3"], poses: Poses) -> Float64[np.ndarray, "H n 3"]:
    """The points in every pose."""
    return points @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]


def kabsch(source: Float64[np.ndarray, "H n 3"], target: Float64[np.ndarray, "H n 3"]) -> Poses:
    """The rigid pose of each set of points that brings them nearest to their targets in the least squares sense.

    Kabsch, A solution for the best rotation to relate two sets of vectors, 1976; never a reflection.
    """
    from_centre, to_centre = source.mean(1, keepdims=True), target.mean(1, keepdims=True)
    u, _, v = np.linalg.svd((source - from_centre).transpose(0, 2, 1) @ (target - to_centre))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ v))[:, None]
    rotation = (u @ v).transpose(0, 2, 1)
    poses = np.tile(np.eye(4), (len(source), 1, 1))
    poses[:, :3, :3] = rotation
    poses[:, :3, 3] = to_centre[:, 0] - (rotation @ from_centre.transpose(0, 2, 1))[:, :, 0]
    return poses
