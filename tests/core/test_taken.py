"""What a tier took is not what arrived there: a saturated one passes on, mostly in bursts, and others take it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.core import demand, learning
from tierwise.core.demand import Measured
from tierwise.core.memory import ClassMemory
from tierwise.core.signals import ClassSignals, Missing, Reading, Signals
from tierwise.core.world import Key

NOW = datetime(2026, 1, 5, tzinfo=UTC)
KEY = ("n", "p", "c")
rates = st.floats(0.0, 500.0)


def reading(value):
    return Missing("no series") if value is None else Reading(value, 1.0)


def seen(arrived, taken=None, *, peak=None, taken_peak=None, tokens=None):
    prompt, completion = tokens or (None, None)
    return ClassSignals(
        request_rate=reading(arrived),
        prompt_tokens=reading(prompt),
        completion_tokens=reading(completion),
        peak_rate=reading(peak),
        taken_rate=reading(taken),
        taken_peak_rate=reading(taken_peak),
    )


def answer(**tiers):
    return Signals(time=NOW, classes={KEY: tiers}, window_seconds=60.0, gateways_up=Reading(1.0, 1.0))


def measured(**tiers) -> Measured:
    found = demand.measure(KEY, answer(**tiers), max_age_seconds=45.0)
    assert isinstance(found, Measured)
    return found


def parts(signals, tokens=(0.0, 100.0)):
    seen_before = Measured(NOW - timedelta(seconds=60), 1.0, {"own": tokens}, {"own": 1.0})
    memory = ClassMemory(history=demand.remember(demand.History(), seen_before))
    return learning._parts(Key("n", "own"), signals, {KEY: memory}, 45.0)


def test_a_request_that_is_passed_on_is_demand_once_and_load_where_it_was_taken():
    found = measured(
        own=seen(10.0, 6.0, peak=30.0, tokens=(500, 100)), far=seen(0.0, 4.0, tokens=(500, 300)), idle=seen(0.0, 0.0)
    )
    assert found.rate == 10.0
    assert found.peak == 30.0
    assert found.rates == {"own": 6.0, "far": 4.0, "idle": 0.0}
    # What the tier that relieves generates is learnt too: nothing arrives there.
    assert found.tokens == {"own": (500, 100), "far": (500, 300)}
    mean = demand.remember(demand.History(), found).tokens[""]
    assert mean == pytest.approx((500, 0.6 * 100 + 0.4 * 300))


def test_where_it_is_not_known_what_tiers_took_it_is_what_arrived():
    assert measured(own=seen(10.0), far=seen(2.0, 4.0)).rates == {"own": 10.0, "far": 2.0}


@given(st.lists(st.tuples(rates, st.floats(-0.01, 500.0)), min_size=1, max_size=5))
def test_demand_is_what_arrives_whoever_takes_it(tiers):
    found = measured(**{f"t{n}": seen(arrived, taken) for n, (arrived, taken) in enumerate(tiers)})
    assert found.rate == pytest.approx(sum(arrived for arrived, _ in tiers))
    assert sum(found.rates.values()) == pytest.approx(found.rate)
    assert all(rate >= 0 for rate in found.rates.values())


@given(arrived=rates, extra=st.floats(0.0, 2000.0), taken=st.floats(1.0, 100.0), over=st.floats(1.0, 6.0))
def test_what_arrives_says_nothing_of_how_uneven_the_load_was(arrived, extra, taken, over):
    """The same load under any arrivals."""
    one = answer(own=seen(arrived, taken, peak=arrived + extra, taken_peak=taken * over))
    assert parts(one) == parts(answer(own=seen(taken, taken, peak=taken * over, taken_peak=taken * over)))


def test_bursts_that_were_passed_on_leave_an_even_load():
    even = answer(own=seen(20.0, 10.0, peak=70.0, taken_peak=10.0))
    assert {round(multiple, 6) for multiple, _ in parts(even)} == {1.0}
    uneven = answer(own=seen(20.0, 20.0, peak=70.0, taken_peak=70.0))
    assert max(multiple for multiple, _ in parts(uneven)) == pytest.approx(3.5)


@pytest.mark.parametrize("own", [seen(20.0, None, peak=70.0, taken_peak=30.0), seen(20.0, 10.0, peak=70.0)])
def test_where_it_is_not_known_what_a_tier_took_its_load_is_taken_for_even(own):
    assert parts(answer(own=own)) == ()


def test_a_tier_that_passed_on_everything_had_no_load():
    assert parts(answer(own=seen(20.0, 0.0, peak=70.0, taken_peak=0.0))) == ()
