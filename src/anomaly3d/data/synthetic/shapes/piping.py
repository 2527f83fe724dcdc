"""Pipe fittings: elbow, tee, valve."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from anomaly3d.data.synthetic.shapes.solids import (
    Tolerance,
    around,
    cylinder,
    hexagon,
    prism,
    revolve,
    slot,
    sweep,
    union,
)


def _plate(t: Tolerance, radius: float, thick: float) -> Manifold:
    """A flange plate on z = 0, four bolt holes, no bore yet."""
    disc = revolve([(0, 0), (radius - 1, 0), (radius, 1), (radius, thick), (0, thick)])
    return disc - around(cylinder(t(3.6), 40, (radius * 0.78, 0, -10), segments=32), 4, 45 + t.angle(1.5))


def elbow(t: Tolerance) -> Manifold:
    """A quarter bend of pipe with a bolted flange at both ends."""
    bend, outer, bore, straight = t(46), t(20), t(15), t(10)
    arc = np.linspace(0, np.pi / 2, 25)
    centre = bend * np.stack([1 - np.cos(arc), np.zeros(25), np.sin(arc)], -1)

    def path(margin: float) -> np.ndarray:
        down = np.linspace(straight + margin, 0, 5, endpoint=False)[:, None] * [0, 0, -1]
        side = centre[-1] + np.linspace(straight + margin, 0, 5, endpoint=False)[::-1, None] * [1, 0, 0]
        return np.concatenate([down, centre, side])

    radius, thick = t(34), t(8)
    first = _plate(t, radius, thick).translate((0, 0, -straight))
    second = _plate(t, radius, thick).rotate((0, -90, 0)).translate((bend + straight, 0, bend))
    return union(sweep(path(0), outer, 40), first, second) - sweep(path(5), bore, 40)


def tee(t: Tolerance) -> Manifold:
    """A pipe tee: run and branch with collars at the three ends."""
    half, rise, outer, bore, collar, wide = t(52), t(50), t(20), t(15), t(26), t(11)
    solids = [cylinder(outer, 2 * half, (-half, 0, 0), "x"), cylinder(outer, rise)]
    solids += [cylinder(collar, wide, (-half, 0, 0), "x"), cylinder(collar, wide, (half - wide, 0, 0), "x")]
    solids.append(cylinder(t(25.5), wide, (0, 0, rise - wide)))
    solids.append(Manifold.sphere(t(23), 64))
    bores = cylinder(bore, 2 * half + 20, (-half - 10, 0, 0), "x") + cylinder(bore, rise + 10)
    return union(*solids) - bores


def valve(t: Tolerance) -> Manifold:
    """A ball valve: hexagonal ends, round body, stem and a lever that stands at about 0 degrees."""
    half, bore, body = t(42), t(11), t(24)
    ends = []
    for side in (-1, 1):
        end = hexagon(t(38), t(15), 0, 1.5).rotate((0, 90, 0))
        ends.append(end.mirror((1, 0, 0)).translate((half, 0, 0)) if side > 0 else end.translate((-half, 0, 0)))
    barrel = revolve([(0, -34), (t(17), -34), (body, -15), (body, 15), (t(17), 34), (0, 34)]).rotate((0, 90, 0))
    stem = union(cylinder(t(10), t(32)), cylinder(t(6), t(42)))
    lever = prism(slot(t(88), t(15)), t(5.5)).translate((30, 0, 0))
    grip = prism(slot(t(46), t(18)), t(9)).translate((54, 0, -1.7))
    handle = union(lever, grip, hexagon(t(13), 9)).rotate((0, 0, t.angle(4))).translate((0, 0, t(36)))
    return union(barrel, stem, handle, *ends) - cylinder(bore, 120, (-60, 0, 0), "x")
