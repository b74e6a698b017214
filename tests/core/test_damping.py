from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import damping
from tierwise.core.damping import LastMove, Mix, Rules

NOW = datetime(2026, 11, 25, 9, tzinfo=UTC)
RULES = Rules(interval_seconds=5, max_step=20, min_saving=0.02, cooldown_seconds=60)
TIERS = ("a", "b", "c")


@st.composite
def weights(draw):
    parts = sorted(draw(st.lists(st.integers(0, 100), min_size=2, max_size=2)))
    return dict(zip(TIERS, (parts[0], parts[1] - parts[0], 100 - parts[1]), strict=True))


@given(weights(), weights(), st.integers(1, 100))
def test_a_step_keeps_the_sum_and_its_length_and_gets_closer(current, wanted, most):
    moved = damping.step(current, wanted, max_step=most, mix=Mix())
    assert sum(moved.values()) == 100
    assert all(weight >= 0 for weight in moved.values())
    assert max(abs(moved[t] - current[t]) for t in TIERS) <= most
    for tier in TIERS:
        low, high = sorted((current[tier], wanted[tier]))
        assert low <= moved[tier] <= high
    if current != wanted:
        assert moved != current


@given(weights(), weights(), st.integers(1, 100))
def test_a_floor_that_both_ends_keep_is_kept_on_the_way(current, wanted, most):
    mix = Mix(scores={"a": 0.5, "b": 0.7, "c": 0.9}, floor=0.7)
    if mix.quality(current) >= 0.7 and mix.quality(wanted) >= 0.7:
        assert mix.quality(damping.step(current, wanted, max_step=most, mix=mix)) >= 0.7 - 1e-9


def test_a_broken_floor_is_worth_a_longer_step_but_no_longer_than_needed():
    mix = Mix(scores={"a": 0.5, "c": 0.9}, floor=0.7)
    moved = damping.step({"a": 100}, {"c": 100}, max_step=10, mix=mix)
    assert moved == {"a": 50, "c": 50}


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda x: sum(x) > 0.01), st.floats(0.5, 0.9))
def test_rounding_sums_to_100_and_keeps_the_floor(parts, floor):
    shares = {tier: part / sum(parts) for tier, part in zip(TIERS, parts, strict=True)}
    mix = Mix(scores={"a": 0.5, "b": 0.7, "c": 0.9}, floor=floor)
    before = mix.quality({tier: 100 * share for tier, share in shares.items()})
    rounded = damping.whole_percents(shares, mix)
    assert sum(rounded.values()) == 100
    if before >= floor:
        assert all(abs(rounded[t] - 100 * shares[t]) <= 2.01 for t in TIERS)
        assert mix.quality(rounded) >= floor - 1e-9


def test_saving_moves_wait_for_the_cooldown_only_to_turn_back():
    last = LastMove(NOW, {"a": 20, "b": -20})
    on, back = {"a": 10, "b": -10}, {"a": -10, "b": 10}
    soon, later = NOW + timedelta(seconds=5), NOW + timedelta(seconds=60)
    assert damping.may_move(last, on, soon, RULES, urgent=False)
    assert not damping.may_move(last, back, soon, RULES, urgent=False)
    assert damping.may_move(last, back, soon, RULES, urgent=True)
    assert damping.may_move(last, back, later, RULES, urgent=False)
    assert not damping.may_move(last, on, NOW + timedelta(seconds=4), RULES, urgent=True)


def test_after_a_restart_any_direction_counts_as_turning_back():
    assert not damping.may_move(LastMove(NOW), {"a": 1, "b": -1}, NOW + timedelta(seconds=30), RULES, urgent=False)


def test_a_move_has_to_save_enough():
    assert damping.worthwhile(100, 97, 0.02)
    assert not damping.worthwhile(100, 98.5, 0.02)
    assert not damping.worthwhile(0, 0, 0.0)


@given(st.integers(0, 20), st.integers(0, 5), st.integers(5, 20))
def test_autoscaler_bounds_lie_within_the_users(planned, low, high):
    least, most = damping.bounds(planned=planned, low=low, high=high)
    assert low <= least <= most <= high
    assert planned <= least or least == high


def test_a_ceiling_limits_the_surge_but_not_below_the_plan():
    assert damping.bounds(planned=4, low=1, high=10) == (4, 5)
    assert damping.bounds(planned=4, low=1, high=10, affordable=4) == (4, 4)
