"""Random flat outlines, within about the unit circle."""

from __future__ import annotations

import numpy as np
from manifold3d import CrossSection, JoinType, OpType

from anomaly3d.data.synthetic.shapes.solids import polygon

_ARC = 32
"""Segments of a full circle."""


def random_outline(rng: np.random.Generator) -> CrossSection:
    """A filled outline: polygonal or smooth, in a third of the cases with holes or hollow."""
    kinds = (_regular, _irregular, _star, _blob, _rounded, _ellipse, _blocks)
    outline = kinds[rng.integers(len(kinds))](rng)
    if rng.random() < 0.65:
        return outline
    opened = _hollow(outline, rng) if rng.random() < 0.4 else _pierced(outline, rng)
    return outline if opened.is_empty() else opened


def _polar(angles: np.ndarray, radii: np.ndarray) -> CrossSection:
    """The outline through (radius, angle), angles rising within one turn: it cannot cross itself."""
    return polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def _even(count: int) -> np.ndarray:
    return 2 * np.pi * np.arange(count) / count


def _regular(rng: np.random.Generator) -> CrossSection:
    count = int(rng.integers(3, 9))
    return _polar(_even(count), np.ones(count)).scale((1, rng.uniform(0.4, 1)))


def _irregular(rng: np.random.Generator) -> CrossSection:
    count = int(rng.integers(3, 10))
    return _polar(_even(count) + rng.uniform(-0.35, 0.35, count) * 2 * np.pi / count, rng.uniform(0.45, 1, count))


def _star(rng: np.random.Generator) -> CrossSection:
    count = int(rng.integers(3, 12))
    return _polar(_even(2 * count), np.tile([1, rng.uniform(0.4, 0.85)], count))


def _blob(rng: np.random.Generator) -> CrossSection:
    angles = _even(56)
    order = np.arange(1, 7)
    height = rng.normal(size=6) * rng.uniform(0.15, 0.5) / order
    radii = np.exp(np.cos(angles[:, None] * order + rng.uniform(0, 2 * np.pi, 6)) @ height)
    return _polar(angles, radii / radii.max())


def _rounded(rng: np.random.Generator) -> CrossSection:
    """A polygon with round corners."""
    sharp = (_regular, _irregular, _star, _blocks)[rng.integers(4)](rng)
    radius = rng.uniform(0.03, 0.2)
    # Inwards first: the outline keeps its size; outwards first rounds the inner corners.
    inner = sharp.offset(-radius, JoinType.Round, circular_segments=_ARC)
    rounded = inner.offset(radius, JoinType.Round, circular_segments=_ARC).simplify(2e-3)
    return sharp if rounded.is_empty() else rounded


def _ellipse(rng: np.random.Generator) -> CrossSection:
    return CrossSection.circle(1, _ARC).scale((1, rng.uniform(0.3, 1)))


def _blocks(rng: np.random.Generator) -> CrossSection:
    """Rectangles that share an edge or cross: L, T, U, plus and the like."""
    first = CrossSection.square((2, rng.uniform(0.25, 0.6)), center=True).translate((0, rng.uniform(-0.7, 0.7)))
    bars = [first]
    for _ in range(rng.integers(1, 4)):
        size, at = (rng.uniform(0.2, 0.6), rng.uniform(0.8, 1.8)), rng.uniform(-0.8, 0.8)
        bars.append(CrossSection.square(size, center=True).translate((at, rng.uniform(-0.2, 0.2))))
    return CrossSection.batch_boolean(bars, OpType.Add).scale((0.75, 0.75))


def _hollow(outline: CrossSection, rng: np.random.Generator) -> CrossSection:
    """A wall along the outline."""
    return outline - outline.offset(-rng.uniform(0.05, 0.25), JoinType.Miter)


def _pierced(outline: CrossSection, rng: np.random.Generator) -> CrossSection:
    """A few equal round or polygonal holes in a row, in a ring or anywhere."""
    count = int(rng.integers(1, 7))
    hole = CrossSection.circle(rng.uniform(0.04, 0.2), int(rng.choice([4, 6, 20, 20])))
    if count == 1:
        at = rng.uniform(-0.2, 0.2, (1, 2))
    elif rng.random() < 0.5:
        angles = _even(count) + rng.uniform(0, np.pi)
        at = rng.uniform(0.35, 0.6) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    else:
        at = rng.uniform(-0.6, 0.6, (count, 2))
    return CrossSection.batch_boolean([outline, *(hole.translate(tuple(p)) for p in at)], OpType.Subtract)
