"""Whether somebody decides, by the Lease that this replica reads."""

from datetime import UTC, datetime, timedelta

from tierwise.runtime.heartbeat import Seen

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


class Clock:
    value = 100.0

    def __call__(self):
        return self.value


def test_a_renewal_is_a_change_that_was_seen_whatever_the_clocks_say():
    clock = Clock()
    seen = Seen(clock)
    assert seen.age_seconds() is None
    seen.look("a", "2026-11-25 12:00:00", NOW)
    clock.value += 7
    seen.look("a", "2026-11-25 12:00:00", NOW)
    assert seen.age_seconds() == 7
    seen.look("a", "2026-11-25 11:00:02", NOW)  # a clock that is an hour late
    assert seen.age_seconds() == 0


def test_a_lease_that_is_old_at_the_first_look_is_no_decision_of_now():
    seen = Seen(Clock())
    seen.look("a", str(NOW.replace(tzinfo=None) - timedelta(minutes=9)), NOW)
    assert seen.age_seconds() == 540


def test_a_lease_that_nobody_holds_says_nothing():
    clock = Clock()
    seen = Seen(clock)
    seen.look("", "2026-11-25 12:00:00", NOW)
    seen.look("a", None, NOW)
    assert seen.age_seconds() is None
    seen.look("a", "2026-11-25 12:00:00", NOW)
    clock.value += 20
    seen.look("", "2026-11-25 12:00:20", NOW)  # given up
    assert seen.age_seconds() == 20
