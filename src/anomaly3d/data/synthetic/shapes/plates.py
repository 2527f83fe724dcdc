"""Sheet, cast and machined blocks: bracket, connector, conrod, heatsink, housing, wrench."""

from __future__ import annotations

from manifold3d import Manifold

from anomaly3d.data.synthetic.shapes.solids import (
    Tolerance,
    around,
    box,
    cylinder,
    hexagon,
    polygon,
    prism,
    revolve,
    rounded,
    slot,
    union,
)


def bracket(t: Tolerance) -> Manifold:
    """An angle bracket: two plates, two gussets, round holes in one plate and slots in the other."""
    width, foot, wall, thick = t(64), t(62), t(70), t(7)
    plates = union(
        prism(rounded(foot * 2, width, t(8)), thick) - box((foot * 4, width * 2, 60), (-foot * 2, 0, 0)),
        box((thick, width, wall), (thick / 2, 0, wall / 2)),
    )
    rib = t(36)
    gusset = prism(polygon([(thick - 1, thick - 1), (rib, thick - 1), (thick - 1, rib + 4)]), t(6.5))
    gusset = gusset.rotate((90, 0, 0))
    at = t(11)
    body = union(plates, gusset.translate((0, at + 6.5, 0)), gusset.translate((0, -at, 0)))
    for side in (-1, 1):
        body -= cylinder(t(4.6), 30, (t(47), side * t(20), -5))
        opening = prism(slot(t(22), t(8.5)), 30).rotate((0, 90, 0)).translate((-5, side * t(22), t(54)))
        body -= opening
    return body


def connector(t: Tolerance) -> Manifold:
    """A circular panel connector: square flange, keyed shell, seven pins, knurled coupling ring."""
    side, shell, depth = t(46), t(16), t(20)
    plate = prism(rounded(side, side, t(6)), t(6))
    for x in (-1, 1):
        for y in (-1, 1):
            plate -= cylinder(t(2.8), 20, (x * side * 0.36, y * side * 0.36, -5), segments=24)
    tube = cylinder(shell, depth + 5) - cylinder(t(13), depth, (0, 0, 9))
    key = box((4, t(4), depth - 6), (12, 0, depth / 2 + 6))
    pin = union(cylinder(t(1.9), t(13), segments=20), Manifold.sphere(1.9, 20).translate((0, 0, 13)))
    pins = around(pin.translate((t(7.6), 0, 8)), 6, t.angle(2))
    back = union(cylinder(t(17.5), t(15), (0, 0, -14)), cylinder(t(9), t(12), (0, 0, -25)))
    back -= around(cylinder(1.7, 13, (18, 0, -13), segments=16), 16)
    return union(plate, tube, key, pins, pin.translate((0, 0, 8)), back)


def conrod(t: Tolerance) -> Manifold:
    """A connecting rod: big end with bolt shoulders, small end, I-section shank."""
    centres, big, small, thick = t(92), t(22), t(12.5), t(15)
    shank = polygon([(10, -t(10)), (10, 10), (centres - 6, t(6.5)), (centres - 6, -6.5)])
    body = union(
        cylinder(big, thick, (0, 0, -thick / 2)),
        cylinder(small, thick + 3, (centres, 0, -thick / 2 - 1.5)),
        prism(shank, t(10.5), -5.25),
        box((t(16), 2 * big + 10, thick - 2), (-3, 0, 0)),
    )
    pocket = polygon([(27, -t(5.4)), (27, 5.4), (centres - 18, t(3.4)), (centres - 18, -3.4)])
    body = body - prism(pocket, 10, t(2.2)) - prism(pocket, 10, -10 - t(2.2))
    return body - cylinder(t(15), 40, (0, 0, -20)) - cylinder(t(7), 40, (centres, 0, -20))


def heatsink(t: Tolerance) -> Manifold:
    """An extruded heat sink: base with two mounting slots, five tapered fins."""
    length, width, base, height, root, tip = t(76), t(72), t(9), t(30), t(7.5), t(5)
    pitch = (width - root) / 4
    fins = []
    for k in range(5):
        tall = height * t(1, 0.015)
        outline = [(-root / 2, -1), (root / 2, -1), (tip / 2, tall), (-tip / 2, tall)]
        fin = prism(polygon(outline), length, -length / 2).rotate((90, 0, 0))
        fins.append(fin.translate(((k - 2) * pitch + t.offset(0.5), 0, base)))
    body = union(box((width + 24, length, base), (0, 0, base / 2)), *fins)
    for side in (-1, 1):
        body -= prism(slot(t(20), t(6)), 30, -5).rotate((0, 0, 90)).translate((side * (width / 2 + 6), 0, 0))
    return body


def housing(t: Tolerance) -> Manifold:
    """An open box with round corners, four screw bosses, two ears and a cable opening."""
    long, wide, tall, wall = t(92), t(64), t(34), t(5.5)
    shell = prism(rounded(long, wide, t(9)), tall)
    shell -= prism(rounded(long - 2 * wall, wide - 2 * wall, 4.5), tall, t(5.5))
    bosses = []
    for x in (-1, 1):
        for y in (-1, 1):
            centre = (x * (long / 2 - wall - 4.5), y * (wide / 2 - wall - 4.5))
            boss = cylinder(t(6), tall - t(6), (*centre, 2)) - cylinder(t(2.6), 40, (*centre, 10), segments=24)
            bosses.append(boss)
    ears = prism(slot(long + t(40), t(24)), t(6.5)) - box((long - 2, wide, 60))
    ears -= cylinder(t(4.2), 20, (long / 2 + t(9), 0, -5)) + cylinder(4.2, 20, (-long / 2 - t(9), 0, -5))
    return union(shell, ears, *bosses) - cylinder(t(7), 30, (t(18), 10, tall * 0.55), "y")


def wrench(t: Tolerance) -> Manifold:
    """A combination wrench: open jaw turned by 15 degrees, hollowed shank, ring end."""
    length, thick, jaw, ring = t(130), t(9), t(21), t(16)
    shank = prism(polygon([(0, -t(9)), (0, 9), (length, t(7)), (length, -7)]), thick - 2, -thick / 2 + 1)
    mouth = union(prism(rounded(40, t(19.5), 1), 40, -20).translate((20, 0, 0)), cylinder(t(9.75), 40, (1, 0, -20)))
    head = cylinder(jaw, thick, (0, 0, -thick / 2)) - mouth.rotate((0, 0, 180 + 15))
    eye = revolve([(0, -thick / 2), (ring, -thick / 2), (ring, thick / 2), (0, thick / 2)]).translate((length, 0, 0))
    body = union(shank - cylinder(jaw - 2, 40, (0, 0, -20)), head, eye)
    pocket = prism(slot(length * t(0.5), t(8)), 10)
    body -= pocket.translate((length * 0.52, 0, t(2))) + pocket.translate((length * 0.52, 0, -10 - t(2)))
    return body - hexagon(t(17.5), 40, -20).translate((length, 0, 0))
