"""The clock of plans never goes back, whatever is done to the machine's."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.runtime.clock import FOLLOWED, SteadyClock

START = datetime(2027, 10, 31, 22, 59, tzinfo=UTC)


class Machine:
    def __init__(self) -> None:
        self.seconds = 100.0
        self.off = 0.0

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.seconds + self.off)

    def monotonic(self) -> float:
        return self.seconds


def made() -> tuple[Machine, SteadyClock]:
    machine = Machine()
    return machine, SteadyClock(machine.wall, machine.monotonic)


def test_a_step_forward_is_followed_at_once():
    machine, clock = made()
    machine.off = 300
    assert clock() == machine.wall()


def test_a_step_back_is_met_at_half_pace():
    machine, clock = made()
    before = clock()
    machine.off = -60
    assert clock() == before
    machine.seconds += 20
    assert clock() == before + timedelta(seconds=10)
    machine.seconds += 100
    assert clock() == before + timedelta(seconds=60) == machine.wall()
    machine.seconds += 5
    assert clock() == machine.wall()


def test_a_clock_that_was_set_wrong_by_days_is_followed():
    machine, clock = made()
    machine.off = -FOLLOWED.total_seconds() - 1
    assert clock() == machine.wall()


@given(
    st.lists(
        st.tuples(st.floats(0, 5000), st.floats(-40_000, 40_000)),
        max_size=30,
    )
)
def test_time_goes_on_and_is_never_behind_the_wall_clock(steps: list[tuple[float, float]]):
    machine, clock = made()
    last = clock()
    for passed, off in steps:
        machine.seconds += passed
        machine.off = off
        now = clock()
        assert now >= last + timedelta(seconds=passed / 2) - timedelta(microseconds=2)
        assert now >= machine.wall()
        last = now
    machine.seconds += 2 * max(0.0, (last - machine.wall()).total_seconds()) + 1
    assert clock() == pytest.approx(machine.wall(), abs=timedelta(microseconds=2))
