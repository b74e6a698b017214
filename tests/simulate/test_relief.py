"""A tier that has all the requests that it may have: what both simulators let go elsewhere."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierwise.sim.replica import Objective, ReplicaParams
from tierwise.simulate import fluid as engine
from tierwise.simulate.fluid import Demand, Fluid, FluidClass, FluidTier, Guard
from tierwise.simulate.inflight import InFlight
from tierwise.simulate.signals import Observer

PARAMS = ReplicaParams(a_ms=10.0, b_ms=0.1, g_ms=0.05, p0_ms=20.0, p1_ms=20.0, p2_ms=0.0, kv_tokens=1_000_000)
INSIDE = FluidTier("inside", PARAMS, price_per_hour=36.0, startup_seconds=120.0)
OUTSIDE = FluidTier("outside", price_in=1.0, price_out=10.0)
RELIEF = {"chat": {"inside": "outside"}}


def chat(name="chat"):
    return FluidClass(name, Objective(1.0, 0.04), p95_prompt=1000.0, quality={"inside": 70.0, "outside": 80.0})


def step(guard, requests=3600, peak=1200, ready=2, down=(), classes=("chat",)):
    fluid = Fluid((INSIDE, OUTSIDE), tuple(chat(name) for name in classes))
    fluid.state["inside"].ready, fluid.guard, fluid.down = ready, guard, set(down)
    demand = {name: Demand(requests, 1000, 100, peak) for name in classes}
    return fluid.step(demand, {name: {"inside": 1} for name in classes}, 60.0)


def erlang(offered, most):
    lost = 1.0
    for count in range(1, most + 1):
        lost = offered * lost / (count + offered * lost)
    return lost


def test_what_two_replicas_do_not_carry_goes_elsewhere_and_all_keep_the_objective():
    waits, guarded = step(Guard()), step(Guard({"inside": 60}, RELIEF))
    assert ("chat", "outside") not in waits.flows
    assert waits.flows["chat", "inside"].kept < 3600
    served = sum(flow.requests for flow in guarded.flows.values())
    assert served == pytest.approx(3600)
    assert sum(flow.kept for flow in guarded.flows.values()) == pytest.approx(3600)
    # Two replicas at 60 requests each take about 45/s, of 120/s in the burst and 48/s in the rest.
    assert 750 < guarded.flows["chat", "outside"].requests < 1500
    assert guarded.tiers["outside"].cost > 0


def test_nothing_goes_where_nobody_relieves_or_the_other_is_down():
    assert ("chat", "outside") not in step(Guard({"inside": 60})).flows
    assert ("chat", "outside") not in step(Guard({"inside": 60}, RELIEF), down=("outside",)).flows
    assert step(Guard({"inside": 60}, RELIEF), ready=0).flows["chat", "outside"].requests == pytest.approx(3600)


def test_a_class_that_waits_leaves_less_to_one_that_does_not():
    guard = Guard({"inside": 60}, RELIEF)
    alone = step(guard, 1800, 300)
    beside = step(guard, 1800, 300, classes=("chat", "secret"))
    assert ("secret", "outside") not in beside.flows
    away = [found.flows["chat", "outside"].requests if ("chat", "outside") in found.flows else 0.0
            for found in (alone, beside)]  # fmt: skip
    assert away[1] > away[0] + 10


@pytest.mark.parametrize("most", [20, 120, 600])
@pytest.mark.parametrize("share", [0.7, 0.95, 1.2, 2.0])
def test_what_is_turned_away_is_erlangs(most, share):
    """Where latency does not depend on the load, the normal approximation is within two points of the formula."""
    found = engine._turned_away(1e-6, 0.0, 1, most * share / 1e-6, most)  # a load so light that nothing slows down
    assert found == pytest.approx(erlang(most * share, most), abs=0.02)


@given(
    gaps=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=200),
    lengths=st.lists(st.floats(1.0, 500.0), min_size=200, max_size=200),
    most=st.integers(1, 30),
)
def test_never_more_in_flight_than_may_be(gaps, lengths, most):
    since = np.cumsum(gaps)
    held = InFlight(0.02)
    length = np.array(lengths[: since.size])
    taken = held.admit(since, length, np.full(since.size, float(most)))
    ends = since + length * 0.02
    for place in range(since.size):
        running = int((taken[:place] & (ends[:place] > since[place] + 1e-9)).sum())
        assert running + int(taken[place]) <= most
        assert taken[place] or running >= most - 1


@given(
    load=st.floats(0.5, 60.0),
    beside=st.floats(0.0, 3.0),
    ready=st.integers(1, 20),
    safe=st.floats(0.3, 0.95),
)
def test_what_is_taken_stays_below_the_limit(load, beside, ready, safe):
    """However steep latency is at the limit: no more are in flight than may be, and nothing is turned away in vain."""
    beside = min(beside, ready / 2)  # where the others fill all replicas, no share that is taken keeps a limit
    held = 100.0
    limit = held * ready * safe / (1 - safe)
    lost = engine._turned_away(load, beside, ready, held, limit)
    taken = load * (1 - lost)
    if lost > 0.001:
        slowed = 1 - min((beside + taken) / ready, engine.SATURATED)
        assert taken * held / slowed <= limit * 1.01
        if lost > 0.2:
            assert taken * held / slowed >= limit * 0.8


def test_gateways_count_what_a_provider_generates():
    """Else what is in flight there would be taken for all that may come."""
    fluid = Fluid((INSIDE, OUTSIDE), (chat(),))
    demand = {"chat": Demand(600, 1000, 100, 200)}
    slot = fluid.step(demand, {"chat": {"outside": 1}}, 60.0)
    seen = Observer("n", "p").signals(datetime(2026, 1, 5, tzinfo=UTC), fluid, slot, demand).tiers["n", "outside"]
    assert (seen.prompt_token_rate.value, seen.generation_token_rate.value) == (10_000.0, 1000.0)


@given(requests=st.floats(1.0, 5000.0), peak=st.floats(1e-40, 1e-12))
def test_a_burst_that_is_nearly_nothing_is_nothing(requests, peak):
    """As a tier gets it that relieves another of next to nothing."""
    slot = step(Guard({"inside": 60}, RELIEF), requests, peak)
    assert sum(flow.requests for flow in slot.flows.values()) == pytest.approx(requests)
