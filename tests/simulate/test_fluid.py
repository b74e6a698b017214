"""The fluid engine against figures worked out by hand."""

import pytest

from tierwise.sim.replica import Objective, ReplicaParams
from tierwise.simulate.fluid import Demand, Fluid, FluidClass, FluidTier, work_seconds

PARAMS = ReplicaParams(a_ms=10.0, b_ms=0.1, g_ms=0.05, p0_ms=20.0, p1_ms=20.0, p2_ms=0.0, kv_tokens=1_000_000)
TIER = FluidTier("inside", PARAMS, price_per_hour=36.0, startup_seconds=120.0)
OUTSIDE = FluidTier("outside", price_in=1.0, price_out=10.0)


def a_class(itl_ms=40.0, ttft_ms=1000.0):
    return FluidClass(
        "chat",
        Objective(ttft_seconds=ttft_ms / 1e3, inter_token_seconds=itl_ms / 1e3),
        p95_prompt=2000.0,
        quality={"inside": 70.0, "outside": 80.0},
        output_factor={"outside": 0.5},
    )


def engine(ready, **limits):
    fluid = Fluid((TIER, OUTSIDE), (a_class(**limits),))
    fluid.state["inside"].ready = ready
    return fluid


def test_work_of_one_request_is_prefill_and_its_part_of_decoding():
    # 1000 prompt tokens: 20 ms; 100 tokens out: 100 * (0.1 + 0.05 * 1.05) ms = 15.25 ms
    assert work_seconds(PARAMS, 1000, 100) == pytest.approx(0.03525)


def test_inter_token_time_and_its_limit():
    # even load: 6 requests in ten seconds, 36 in the minute, all on one replica: 0.6 * 0.03525 = 2% utilisation
    fluid = engine(1)
    slot = fluid.step({"chat": Demand(36, 1000, 100, 6)}, {"chat": {"inside": 100}}, 60.0)
    seen = slot.tiers["inside"]
    assert seen.utilisation == pytest.approx(0.02115)
    assert seen.itl[0][1] == pytest.approx(0.010 / (1 - 0.02115))
    assert slot.flows["chat", "inside"].kept == 36
    assert slot.cost == pytest.approx(36 / 60)


def test_the_busiest_ten_seconds_count_apart():
    # 21 requests/s * 0.03525 = 74% in the burst, 40 ms / (1 - rho) allows 75%; one request more breaks it
    calm, burst = 500, 210
    kept = engine(1).step({"chat": Demand(calm + burst, 1000, 100, burst)}, {"chat": {"inside": 1}}, 60.0)
    assert kept.flows["chat", "inside"].kept == calm + burst
    over = engine(1).step({"chat": Demand(calm + 220, 1000, 100, 220)}, {"chat": {"inside": 1}}, 60.0)
    assert over.flows["chat", "inside"].kept == calm


def test_overload_builds_a_backlog_that_is_worked_off():
    fluid = engine(1)
    load = {"chat": Demand(6 * 600, 1000, 100, 600)}  # 60/s: rho 2.115
    slot = fluid.step(load, {"chat": {"inside": 1}}, 60.0)
    assert slot.flows["chat", "inside"].kept == 0
    assert fluid.state["inside"].backlog == pytest.approx((2.115 - 0.98) * 60)
    before = fluid.state["inside"].backlog
    fluid.step({"chat": Demand(6, 1000, 100, 1)}, {"chat": {"inside": 1}}, 60.0)
    assert fluid.state["inside"].backlog == pytest.approx(before - 60 * 0.98 + 6 * 0.03525)


def test_starting_replicas_cost_and_serve_nothing():
    fluid = engine(0)
    fluid.scale({"inside": 2})
    load = {"chat": Demand(6, 1000, 100, 1)}
    first = fluid.step(load, {"chat": {"inside": 1}}, 60.0)
    assert first.cost == pytest.approx(2 * 36 / 60)
    assert first.flows["chat", "inside"].kept == 0
    fluid.step(load, {"chat": {"inside": 1}}, 60.0)
    assert fluid.step(load, {"chat": {"inside": 1}}, 60.0).flows["chat", "inside"].kept == 6


def test_a_provider_costs_tokens_and_is_within_the_objective():
    slot = engine(0).step({"chat": Demand(1000, 1000, 100, 1000)}, {"chat": {"outside": 1}}, 60.0)
    assert slot.cost == pytest.approx(1000 * (1000 * 1 + 50 * 10) / 1e6)
    assert slot.flows["chat", "outside"].kept == 1000


def test_a_burst_is_judged_beside_the_mean_of_other_classes():
    # alone 15/s fill 53% in the burst; with another class's mean of 10/s (35%) beside it 88% break the limit of 75%
    chat, code = a_class(), a_class()
    code = FluidClass("code", code.objective, code.p95_prompt, code.quality, code.output_factor)
    fluid = Fluid((TIER,), (chat, code))
    fluid.state["inside"].ready = 1
    demand = {"chat": Demand(250, 1000, 100, 150), "code": Demand(600, 1000, 100, 100)}
    slot = fluid.step(demand, {"chat": {"inside": 1}, "code": {"inside": 1}}, 60.0)
    assert slot.flows["chat", "inside"].kept == 100
    assert slot.flows["code", "inside"].kept == 600
    alone = Fluid((TIER,), (chat,))
    alone.state["inside"].ready = 1
    assert alone.step(demand, {"chat": {"inside": 1}}, 60.0).flows["chat", "inside"].kept == 250
