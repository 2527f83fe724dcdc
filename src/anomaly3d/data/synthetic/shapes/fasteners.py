"""Fasteners and small hardware: hexbolt, hexnut, spring, hinge, clamp."""

from __future__ import annotations

import numpy as np
from manifold3d import Manifold

from anomaly3d.data.synthetic.shapes.solids import (
    Tolerance,
    box,
    cylinder,
    hexagon,
    polygon,
    prism,
    revolve,
    sweep,
    union,
)


def _thread(radius: float, pitch: float, depth: float, length: float) -> list[tuple[float, float]]:
    """The (radius, z) outline of a thread as rings, from z = 0 to z = length."""
    turns = int(length / pitch)
    return [
        point
        for k in range(turns)
        for point in ((radius - depth, k * pitch), (radius, (k + 0.35) * pitch), (radius, (k + 0.65) * pitch))
    ] + [(radius - depth, turns * pitch), (radius - depth, length)]


def hexbolt(t: Tolerance) -> Manifold:
    """A hexagon-head bolt with a washer face, a plain shank and a thread."""
    head, radius, grip, threaded = t(13), t(10), t(26), t(40)
    thread = [(r, -grip - threaded + z) for r, z in _thread(radius, t(4), t(1.5), threaded)]
    body = revolve([(0, thread[0][1]), *thread, (radius, -grip), (radius, 0.1), (0, 0.1)])
    washer = cylinder(t(16), 1.5)
    return union(body, washer, hexagon(t(31), head, 1.0, 2.0).rotate((0, 0, t.angle(4))))


def hexnut(t: Tolerance) -> Manifold:
    """A flanged hexagon nut with a threaded bore and a collar."""
    height, base, bore = t(22), t(5), t(11.5)
    skirt = revolve([(0, 0), (t(26), 0), (26, base * 0.5), (t(20), base + 2.5), (0, base + 2.5)])
    collar = revolve([(0, height - 1), (t(15.5), height - 1), (15.5, height + 4), (14, height + 6), (0, height + 6)])
    body = union(skirt, hexagon(t(36), height - 2, 2, 2.2).rotate((0, 0, t.angle(3))), collar)
    thread = _thread(bore, t(4), t(1.4), height + 12)
    return body - revolve([(0, 0), *thread, (0, height + 12)]).translate((0, 0, -2))


def spring(t: Tolerance) -> Manifold:
    """A compression spring of four and a half turns whose ends lie flat."""
    radius, wire, pitch, turns = t(18), t(4.5), t(19), 4.5
    angle = np.linspace(0, 2 * np.pi * turns, 260)
    # The first and last half turn rise slowly: closed ends.
    rate = np.clip(np.minimum(angle, angle[-1] - angle) / np.pi, 0.35, 1.0)
    z = pitch * np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(angle))]) / (2 * np.pi)
    return sweep(np.stack([radius * np.cos(angle), radius * np.sin(angle), z], -1), wire)


def hinge(t: Tolerance) -> Manifold:
    """Two leaves with countersunk holes, five knuckles on a pin, opened to about 150 degrees."""
    length, leaf, thick, knuckle = t(70), t(38), t(5), t(6.5)
    gap, share = 0.8, length / 5

    def wing(sleeves: tuple[int, ...]) -> Manifold:
        plate = box((leaf, length, thick), (leaf / 2, 0, -knuckle + thick / 2))
        cleared = [k for k in range(5) if k not in sleeves]
        for k in cleared:
            plate -= cylinder(knuckle + gap, share, (0, -length / 2 + k * share, 0), "y")
        rings = [cylinder(knuckle, share - gap, (0, -length / 2 + k * share + gap / 2, 0), "y", 32) for k in sleeves]
        wing = union(plate, *rings)
        for y in (-length * t(0.32), 0.0, length * t(0.32)):
            x = leaf * (0.62 if y else 0.78)
            wing -= cylinder(t(2.9), 20, (x, y, -15), segments=24)
        return wing

    pin = union(
        cylinder(t(3.2), length + 4, (0, -length / 2 - 2, 0), "y", 24),
        cylinder(t(5), 3, (0, length / 2, 0), "y", 24),
    )
    opened = 30 + t.angle(4)
    other = wing((1, 3)).mirror((1, 0, 0)).rotate((0, -opened, 0))
    return union(wing((0, 2, 4)), other, pin)


def clamp(t: Tolerance) -> Manifold:
    """A C-clamp: ribbed frame, spindle turned in by a varying amount, swivel pad and handle bar."""
    reach, opening, bar, thick = t(58), t(60), t(14), t(13)
    outer = [(-bar, -bar), (reach, -bar), (reach + 4, 0), (4, 0), (0, 4), (0, opening - 4), (4, opening)]
    outline = [*outer, (reach + 4, opening), (reach, opening + bar), (0, opening + bar), (-bar, opening)]
    frame = prism(polygon(outline), thick, -thick / 2).rotate((90, 0, 0))
    x = reach - t(8)
    boss = cylinder(t(10.5), bar + 8, (x, 0, opening - 4))
    anvil = cylinder(t(10), 6, (x, 0, -2))
    pad = t(22, 0.08)
    spindle = cylinder(t(5.5), opening + bar + 18 - pad, (x, 0, pad))
    foot = revolve([(0, pad - 4), (t(10), pad - 4), (10, pad), (6, pad + 5), (0, pad + 5)]).translate((x, 0, 0))
    handle = cylinder(t(3.2), t(46), (-23, 0, 0), "x", 24).rotate((0, 0, 35 + t.angle(10)))
    handle = handle.translate((x, 0, opening + bar + 13))
    return union(frame, boss, anvil, spindle, foot, handle)
