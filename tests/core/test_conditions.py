from datetime import UTC, datetime, timedelta

from tierwise.core import conditions

NOW = datetime(2026, 11, 25, 9, 0, 0, 123456, tzinfo=UTC)


def test_the_transition_time_moves_with_the_status_only() -> None:
    first = conditions.settle([conditions.ready("Serving")], (), generation=1, now=NOW)
    assert first[0].last_transition_time == NOW.replace(microsecond=0)
    later = NOW + timedelta(hours=1)
    other_reason = conditions.settle([conditions.ready("Available", "text")], first, generation=2, now=later)
    assert other_reason[0].last_transition_time == first[0].last_transition_time
    assert (other_reason[0].reason, other_reason[0].observed_generation) == ("Available", 2)
    gone = conditions.settle([conditions.not_ready("Starting", "none")], other_reason, generation=2, now=later)
    assert gone[0].last_transition_time == later.replace(microsecond=0)


def test_ready_comes_first_and_what_no_longer_holds_is_gone() -> None:
    before = conditions.settle(conditions.stalled("NameTaken", "rename"), (), generation=1, now=NOW)
    assert [c.type for c in before] == ["Ready", "Stalled"]
    assert {c.reason for c in before} == {"NameTaken"}
    after = conditions.settle([conditions.ready("Available")], before, generation=1, now=NOW)
    assert [c.type for c in after] == ["Ready"]


def test_messages_fit() -> None:
    found = conditions.settle([conditions.not_ready("InvalidSpec", "x" * 10_000)], (), generation=1, now=NOW)
    assert len(found[0].message) == 4096


def test_an_invalid_spec_says_whether_an_older_one_is_in_effect() -> None:
    assert "stays in effect" in conditions.invalid("why", held=True)[0].message
    assert conditions.invalid("why", held=False)[0].message == "why"
