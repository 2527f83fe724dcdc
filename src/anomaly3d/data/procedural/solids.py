"""Random simple solids of about unit radius around the origin: primitives, extrusions, revolutions, tubes."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold
from scipy.interpolate import CubicSpline, PchipInterpolator

from anomaly3d.data.procedural.outlines import random_outline
from anomaly3d.data.synthetic.shapes.solids import revolve, sweep

_SEGMENTS = 36


def random_primitive(rng: np.random.Generator) -> Manifold:
    """One solid of a random kind; extrusions and revolutions, the richest kinds, come most often."""
    kinds = (_block, _rounded_block, _cone, _ball, _torus, _capsule, _hull, _extrusion, _plate, _lathe, _tube)
    weight = np.array([2, 1.5, 2, 3, 1, 1, 1, 4, 2, 3, 2])
    return kinds[rng.choice(len(kinds), p=weight / weight.sum())](rng)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _block(rng: np.random.Generator) -> Manifold:
    x, y, z = (_log_uniform(rng, 0.15, 1.4) for _ in range(3))
    return Manifold.cube((x, y, z), center=True)


def _rounded_block(rng: np.random.Generator) -> Manifold:
    half = np.array([_log_uniform(rng, 0.12, 0.7) for _ in range(3)])
    radius = half.min() * rng.uniform(0.2, 0.9)
    corner = Manifold.sphere(radius, 24)
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
    return Manifold.batch_hull([corner.translate(tuple(at)) for at in signs * (half - radius)])


def _cone(rng: np.random.Generator) -> Manifold:
    """A cylinder, a truncated cone or a cone with a tip."""
    base, height = rng.uniform(0.2, 0.9), rng.uniform(0.2, 1.8)
    top = base * rng.choice([1, 1, rng.uniform(0.1, 0.9), 0])
    return Manifold.cylinder(height, base, top, _SEGMENTS, center=True)


def _ball(rng: np.random.Generator) -> Manifold:
    """A sphere, a superellipsoid or a bumpy ball, often with unequal axes."""
    x, y, z = rng.uniform(0.3, 1, 3) if rng.random() < 0.7 else np.ones(3)
    power = _log_uniform(rng, 1.2, 6)  # Between an octahedron (1) and nearly a cube (6).
    waves, phase = rng.normal(size=(3, 6)) * rng.uniform(1, 3), rng.uniform(0, 2 * np.pi, 6)
    shapes = (
        lambda p: p,
        lambda p: p * np.sum(np.abs(p) ** power, axis=1, keepdims=True) ** (-1 / power),
        lambda p: p * np.exp(0.08 * np.sin(p @ waves + phase).sum(axis=1, keepdims=True)),
    )
    return Manifold.sphere(1, _SEGMENTS).warp_batch(shapes[rng.integers(3)]).scale((x, y, z))


def _torus(rng: np.random.Generator) -> Manifold:
    """A ring of round or any other section, sometimes only a part of it."""
    size = rng.uniform(0.1, 0.35)
    section = random_outline(rng).scale((size, size)).translate((1 - size, 0))
    degrees = 360 if rng.random() < 0.6 else rng.uniform(60, 300)
    return Manifold.revolve(section, _SEGMENTS, degrees)


def _capsule(rng: np.random.Generator) -> Manifold:
    """Two balls, their sizes free, and what lies between."""
    first, second, reach = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.6)
    ends = Manifold.sphere(first, 24).translate((0, 0, -reach)), Manifold.sphere(second, 24).translate((0, 0, reach))
    return Manifold.batch_hull(list(ends))


def _hull(rng: np.random.Generator) -> Manifold:
    """A convex polyhedron."""
    directions = rng.normal(size=(int(rng.integers(6, 20)), 3))
    return Manifold.hull_points(directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(0.4, 1, 3))


def _extrusion(rng: np.random.Generator) -> Manifold:
    """A prism, sometimes twisted or narrower at its top."""
    height = _log_uniform(rng, 0.15, 1.8)
    twist = rng.uniform(-90, 90) if rng.random() < 0.15 else 0.0
    top = rng.uniform(0.4, 1) if rng.random() < 0.25 else 1.0
    solid = Manifold.extrude(random_outline(rng), height, 10 if twist else 0, twist, (top, top))
    return solid.translate((0, 0, -height / 2))


def _plate(rng: np.random.Generator) -> Manifold:
    height = _log_uniform(rng, 0.03, 0.12)
    return Manifold.extrude(random_outline(rng), height).translate((0, 0, -height / 2))


def _lathe(rng: np.random.Generator) -> Manifold:
    """A turned solid: steps, cones or one smooth curve along its axis, sometimes bored."""
    count = int(rng.integers(3, 8))
    height, radius = rng.uniform(-0.9, 0.9, count), rng.uniform(0.15, 0.9, count)
    height = np.linspace(-1, 1, count) * rng.uniform(0.3, 0.9) if rng.random() < 0.4 else np.sort(height)
    kind = rng.integers(3)
    if kind == 0:
        height, radius = np.repeat(height, 2)[1:-1], np.repeat(radius[:-1], 2)
    elif kind == 1 and np.diff(height).min() > 0.02:
        fine = np.linspace(height[0], height[-1], 28)
        height, radius = fine, PchipInterpolator(height, radius)(fine)
    bore = radius.min() * rng.uniform(0.3, 0.9) if rng.random() < 0.35 else 0.0
    profile = [(bore, height[0]), *zip(radius, height, strict=True), (bore, height[-1])]
    return revolve(profile, _SEGMENTS)


def _tube(rng: np.random.Generator) -> Manifold:
    """A bar along a random smooth curve, sometimes flattened."""
    steps = rng.normal(loc=(0.9, 0, 0), size=(int(rng.integers(3, 6)), 3))
    knots = np.cumsum(steps, axis=0)
    path = CubicSpline(np.arange(len(knots)), knots)(np.linspace(0, len(knots) - 1, 28))
    path -= path.mean(axis=0)
    path /= np.linalg.norm(path, axis=1).max()
    solid = sweep(path, rng.uniform(0.05, 0.2), 14)
    return solid.scale((1, 1, rng.uniform(0.4, 1))) if rng.random() < 0.3 else solid
