"""Stages by a reading that the test moves: every unit goes to the innermost open stage, none twice."""

from __future__ import annotations

import pytest

from anomaly3d.ops.stages import OTHER, measured, stage


class Reading:
    now = 0.0

    def work(self, amount: float) -> None:
        self.now += amount

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Reading:
    return Reading()


def test_what_grows_goes_to_the_innermost_stage(clock: Reading) -> None:
    @stage("inner")
    def inner() -> str:
        clock.work(10)
        return "result"

    sums: dict[str, float] = {"inner": 5.0}
    clock.work(1000)
    with measured(clock, sums):
        clock.work(1)
        with stage("outer"):
            clock.work(100)
            assert inner() == "result"
            clock.work(200)
        inner()
        clock.work(2)
    clock.work(1000)
    assert inner() == "result"  # nobody measures
    assert sums == {"inner": 25.0, "outer": 300.0, OTHER: 3.0}


def test_a_stage_that_fails_is_closed(clock: Reading) -> None:
    @stage("fails")
    def fail(amount: float) -> None:
        clock.work(amount)
        raise ValueError

    def twice() -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            fail(1)
        clock.work(2)
        fail(4)

    sums: dict[str, float] = {}
    with pytest.raises(ValueError), measured(clock, sums):  # noqa: PT011
        twice()
    assert sums == {"fails": 5.0, OTHER: 2.0}
    with stage("c"):
        clock.work(8)
    assert sums == {"fails": 5.0, OTHER: 2.0}


def test_an_inner_measurement_has_its_stages_to_itself(clock: Reading) -> None:
    outer: dict[str, float] = {}
    inner: dict[str, float] = {}
    with measured(clock, outer), stage("a"):
        clock.work(1)
        with measured(clock, inner), stage("a"):
            clock.work(2)
        clock.work(4)
    assert inner == {OTHER: 0.0, "a": 2.0}
    assert outer == {OTHER: 0.0, "a": 7.0}
