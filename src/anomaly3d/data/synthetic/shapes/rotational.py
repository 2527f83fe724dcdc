"""Turned parts: bearing, crankshaft, flange, gear, pulley, shaft."""

from __future__ import annotations

import numpy as np
from manifold3d import CrossSection, Manifold

from anomaly3d.data.synthetic.shapes.solids import (
    Tolerance,
    around,
    box,
    cylinder,
    polygon,
    prism,
    revolve,
    slot,
    union,
)


def bearing(t: Tolerance) -> Manifold:
    """A ball bearing: two rings, nine balls at any angle, a cage."""
    width, ball = t(16), t(5.6)
    inner = revolve([(t(11), 0), (17, 0), (17, width), (t(11), width)])
    rim = t(33)
    outer = revolve([(26, 0), (rim - 1, 0), (rim, 1), (rim, width - 1), (rim - 1, width), (26, width)])
    balls = around(Manifold.sphere(ball, 32).translate((21.5, 0, width / 2)), 9, t.angle(20))
    half = t(4.5)
    cage = revolve(
        [(20.2, width / 2 - half), (22.8, width / 2 - half), (22.8, width / 2 + half), (20.2, width / 2 + half)]
    )
    return union(inner, outer, balls, cage)


def crankshaft(t: Tolerance) -> Manifold:
    """Three main journals in line, two crank pins on opposite sides, webs between."""
    journal, pin, throw, web = t(10), t(9), t(19), t(8)
    solids, z = [], 0.0
    for side in (1.0, -1.0, 0.0):
        length = t(22)
        solids.append(cylinder(journal, length, (0, 0, z)))
        z += length
        if side == 0:
            break
        big, small = CrossSection.circle(t(16), 48), CrossSection.circle(t(13), 48)
        cheek = CrossSection.batch_hull([big.translate((-side * 6, 0)), small.translate((side * throw, 0))])
        gap = t(18)
        solids += [prism(cheek, web, z), prism(cheek, web, z + web + gap)]
        solids.append(cylinder(pin, gap + 2, (side * throw, 0, z + web - 1)))
        z += 2 * web + gap
    solids.append(cylinder(t(7), t(20), (0, 0, z)))
    return union(*solids)


def flange(t: Tolerance) -> Manifold:
    """A weld-neck flange with a raised face and six bolt holes."""
    bore, neck, plate, thick, height = t(20), t(27), t(60), t(12), t(34)
    profile = [(bore, -2), (t(40), -2), (t(40), 0), (plate - 1, 0), (plate, 1), (plate, thick), (t(35), thick)]
    body = revolve([*profile, (neck, t(26)), (neck, height), (bore, height)])
    return body - around(cylinder(t(5.5), 40, (t(49), 0, -10)), 6, t.angle(1.5))


def gear(t: Tolerance) -> Manifold:
    """A spur gear of 18 teeth with a hub on one side, a bore and a keyway."""
    teeth, root, tip, width, bore = 18, t(36), t(45), t(16), t(11)
    step = 2 * np.pi / teeth
    # Flanks as four-point involute-like curves: (angle in steps, radius).
    share = t(0.5, 0.03)
    flank = [(-0.46 * share / 0.5, 0.0), (-0.30, 0.35), (-0.20, 0.75), (-0.12, 1.0)]
    tooth = flank + [(-a, r) for a, r in reversed(flank)]
    outline = [
        ((root + (tip - root) * r) * np.cos((k + a) * step), (root + (tip - root) * r) * np.sin((k + a) * step))
        for k in range(teeth)
        for a, r in tooth
    ]
    body = union(prism(polygon(outline), width), cylinder(t(20), t(12), (0, 0, width - 1)))
    recess = revolve([(20.5, -1), (t(30), -1), (t(30), t(4)), (20.5, t(4))])
    keyway = box((2 * t(3.4), t(6), 60), (bore, 0, 20))
    return body - recess - cylinder(bore, 60, (0, 0, -10)) - keyway


def pulley(t: Tolerance) -> Manifold:
    """A V-belt pulley: groove, web with five lightening holes, hub with a keyway."""
    rim, groove, width, web, hub, bore = t(50), t(40), t(20), t(7), t(17), t(9)
    half, inner = width / 2, t(34)
    profile = [
        (bore, -half - 3), (hub, -half - 3), (hub, -web / 2), (inner, -web / 2), (inner, -half), (rim, -half),
        (rim, -half + 3), (groove, -2), (groove, 2), (rim, half - 3), (rim, half), (inner, half), (inner, web / 2),
        (hub, web / 2), (hub, half + 3), (bore, half + 3),
    ]  # fmt: skip
    holes = around(cylinder(t(5.6), 40, (t(25.5), 0, -20)), 5, t.angle(2))
    return revolve(profile) - holes - box((2 * t(3), t(5.5), 60), (bore, 0, 0))


def shaft(t: Tolerance) -> Manifold:
    """A stepped shaft with chamfers, a ring groove and two keyways."""
    steps = [(t(11), t(34)), (t(14), t(40)), (t(18), t(14)), (t(14.5), t(36)), (t(9.5), t(30))]
    profile: list[tuple[float, float]] = [(0, 0)]
    z = 0.0
    for radius, length in steps:
        profile += [(radius - 1, z), (radius, z + 1), (radius, z + length - 1), (radius - 1, z + length)]
        z += length
    body = revolve([*profile, (0, z)])
    groove_at = steps[0][1] - t(7)
    ring = revolve([(9.2, groove_at), (20, groove_at), (20, groove_at + 2.4), (9.2, groove_at + 2.4)])
    middle = steps[0][1] + steps[1][1] / 2

    def keyway(length: float, width: float, radius: float, at: float) -> Manifold:
        return prism(slot(length, width), 20).rotate((0, 90, 0)).translate((radius - 4, 0, at))

    return body - ring - keyway(t(26), t(6.5), steps[1][0], middle) - keyway(t(18), t(5), steps[4][0], z - t(14))
