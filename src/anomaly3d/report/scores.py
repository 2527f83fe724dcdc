"""Scores of a table of results, as they were printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True)
class Printed:
    """A fraction of one as it was printed: `number` units of the last of `decimals` digits."""

    number: int
    decimals: int

    @property
    def value(self) -> Fraction:
        """The number as it stands."""
        return Fraction(self.number, 10**self.decimals)

    @property
    def low(self) -> Fraction:
        """The least number that is printed so: half a unit less, rounded up."""
        return self.value - Fraction(1, 2 * 10**self.decimals)

    @property
    def high(self) -> Fraction:
        """All numbers printed so are less than this: up to a unit more, cut off."""
        return self.value + Fraction(1, 10**self.decimals)


@dataclass
class Scores:
    """One metric of one method on one data set.

    Attributes:
        dataset: empty if the table names none.
        setting: setting, protocol, split and seed, as far as the table names them.
        method: as the table names it.
        metric: one of `METRICS`.
        cells: by category.
        means: as printed; more than one if the table prints several.
        seeds: runs that every number is the mean over.
        clouds: (normal, anomalous) test clouds by category, where the table has them.
    """

    dataset: str
    setting: str
    method: str
    metric: str
    cells: dict[str, Printed] = field(default_factory=dict)
    means: list[Printed] = field(default_factory=list)
    seeds: int = 1
    clouds: dict[str, tuple[int, int]] = field(default_factory=dict)
