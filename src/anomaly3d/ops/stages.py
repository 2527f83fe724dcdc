"""Named stages of the work, measured where somebody asks: in seconds, multiply-adds, or whatever else only grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

OTHER = "other"
"""What lies in no stage."""

_meter: _Meter | None = None


class _Meter:
    """Gives what a reading grows by to the innermost open stage."""

    def __init__(self, reading: Callable[[], float], sums: dict[str, float]) -> None:
        self.reading = reading
        self.sums = sums
        self.open: list[str] = [OTHER]
        self.last = reading()

    def turn(self) -> None:
        now = self.reading()
        self.sums[self.open[-1]] = self.sums.get(self.open[-1], 0.0) + now - self.last
        self.last = now


@contextmanager
def stage(name: str) -> Iterator[None]:
    """A named part of the work, as a `with` block or a decorator; an inner stage does not count in the outer one.

    Costs next to nothing where nobody measures.
    """
    meter = _meter
    if meter is None:
        yield
        return
    meter.turn()
    meter.open.append(name)
    try:
        yield
    finally:
        meter.turn()
        meter.open.pop()


@contextmanager
def measured(reading: Callable[[], float], sums: dict[str, float]) -> Iterator[None]:
    """Add what each stage of the work inside takes to `sums`, and what lies in none as `other`.

    Measurements do not nest: an inner one has its stages to itself. One thread.

    Args:
        reading: a number that only grows; read whenever a stage begins or ends.
        sums: by the names of the stages, in the order in which they first end.
    """
    global _meter
    outer, _meter = _meter, _Meter(reading, sums)
    try:
        yield
    finally:
        _meter.turn()
        _meter = outer
