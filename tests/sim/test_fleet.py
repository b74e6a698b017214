"""The fleet simulator: conservation, cost by hand, start-up, drain, fallback; and the baselines built on it."""

import dataclasses
import json
from decimal import Decimal

import pytest

from tierwise.sim import replay, traces
from tierwise.sim.fleet import Decision, Fixed, Fleet, FleetError, ProviderTier, ReplicaTier, TrafficClass
from tierwise.sim.hpa import HpaSpec
from tierwise.sim.outcome import summarise
from tierwise.sim.profiles import profile, provider_profile
from tierwise.sim.replica import Mix, Objective, inter_token_seconds, utilisation
from tierwise.sim.simulate import simulate
from tierwise.sim.traces import TraceRequest

OBJECTIVE = Objective(ttft_seconds=2.0, inter_token_seconds=0.06)


def fleet(**changes):
    small, large = profile("qwen3-8b/l40s"), profile("qwen3-32b/2xa100")
    tiers = (
        ReplicaTier("small", small.params, small.usd_per_replica_hour, 20.0, {"routine": 0.7, "complex": 0.5}),
        ReplicaTier("large", large.params, large.usd_per_replica_hour, 40.0, {"routine": 0.75, "complex": 0.75}),
        ProviderTier("external", provider_profile("provider/gpt-5-mini"), {"routine": 0.8, "complex": 0.8}),
    )
    names = ("small", "large", "external")
    classes = (
        TrafficClass("routine", names, OBJECTIVE, changes.get("floor_routine", 0.7)),
        TrafficClass("complex", names, Objective(4.0, 0.08), changes.get("floor_complex", 0.7)),
    )
    return Fleet(tiers, classes, changes.get("seed", 0))


def steady(rate, seconds, prompt=500, output=100, kind="routine"):
    return [TraceRequest(number / rate, prompt, output, kind) for number in range(int(rate * seconds))]


def test_cost_by_hand():
    trace = steady(1, 100)
    decision = Decision({"routine": {"small": 1}, "complex": {"large": 1}}, {"small": (2, 2), "large": (1, 1)})
    result = simulate(fleet(), trace, Fixed(decision), horizon_seconds=3600)
    assert result.replica_hours == {"small": pytest.approx(2), "large": pytest.approx(1)}
    assert result.cost_usd["small"] == Decimal("3.096800")
    assert result.cost_usd["large"] == Decimal("2.700000")
    assert result.cost_usd["external"] == 0
    assert result.total_usd == Decimal("5.796800")
    assert result.changes == 0


def test_tokens_of_a_provider_by_hand():
    trace = steady(1, 100)
    decision = Decision({"routine": {"external": 1}, "complex": {"external": 1}}, {"small": (0, 0), "large": (0, 0)})
    result = simulate(fleet(), trace, Fixed(decision))
    # 100 requests of 500 tokens in at 0.25 $/M and 100 out at 2 $/M.
    assert result.total_usd == Decimal("0.032500")
    spread = summarise(result.records, {}).overall
    assert spread.ttft.p50 == pytest.approx(0.51, rel=0.1)
    assert spread.inter_token.p50 == pytest.approx(1 / 40)


def test_every_request_is_answered_once_and_weights_hold():
    trace = traces.generate(traces.TraceSpec(seed=1, duration_seconds=200))
    weights = {"routine": {"small": 0.6, "external": 0.4}, "complex": {"large": 0.5, "external": 0.5}}
    result = simulate(fleet(), trace, Fixed(Decision(weights, {"small": (4, 4), "large": (4, 4)})))
    assert [record.index for record in result.records] == list(range(len(trace)))
    assert all(record.served for record in result.records)
    assert sum(record.completion_tokens for record in result.records) == sum(r.output_tokens for r in trace)
    summary = summarise(result.records, {})
    routine = summary.kinds["routine"]
    assert routine.tiers["small"] / routine.requests == pytest.approx(0.6, abs=0.05)
    assert set(summary.kinds["complex"].tiers) == {"large", "external"}


def test_same_seed_same_result_other_seed_other():
    trace = traces.generate(traces.TraceSpec(seed=1, duration_seconds=60))
    weights = {"routine": {"small": 0.5, "external": 0.5}, "complex": {"large": 1}}
    decision = Fixed(Decision(weights, {"small": (2, 2), "large": (2, 2)}))
    assert simulate(fleet(), trace, decision) == simulate(fleet(), trace, decision)
    assert simulate(fleet(), trace, decision) != simulate(fleet(seed=1), trace, decision)


def test_latency_agrees_with_the_closed_form():
    params = profile("qwen3-8b/l40s").params
    trace = traces.generate(
        traces.TraceSpec(
            seed=2,
            duration_seconds=600,
            base_rps=4,
            peak_rps=4,
            variation=1.0,
            bursts=(),
            kinds=(
                traces.Kind("routine", 1, traces.Lengths(500, 0.001, 490, 510), traces.Lengths(150, 0.001, 140, 160)),
            ),
        )
    )
    decision = Decision({"routine": {"small": 1}, "complex": {"small": 1}}, {"small": (2, 2), "large": (0, 0)})
    result = simulate(fleet(), trace, Fixed(decision))
    served = [record for record in result.records if record.planned_seconds > 60]
    mean = sum(record.inter_token_seconds for record in served) / len(served)
    rho = utilisation(params, Mix.of(500, 150), len(trace) / 600 / 2, prompts_per_prefill=1)
    assert mean == pytest.approx(inter_token_seconds(params, rho), rel=0.06)


@dataclasses.dataclass
class Script:
    """Small replicas by time."""

    steps: dict
    interval_seconds: float = 10.0

    def decide(self, t_seconds, observation):
        self.seen = observation
        count = next(count for at, count in sorted(self.steps.items(), reverse=True) if t_seconds >= at)
        return Decision({"routine": {"small": 1}, "complex": {"small": 1}}, {"small": (count, count), "large": (0, 0)})


def test_starting_and_draining_replicas_are_charged_and_serve_nothing_new():
    trace = steady(1, 100, output=400)
    result = simulate(fleet(), trace, Script({0: 1, 30: 3, 60: 1}), horizon_seconds=200)
    ready = {sample.t_seconds: sample.ready for sample in result.timeline if sample.tier == "small"}
    assert (ready[45.0], ready[55.0]) == (1, 3)
    # One for 200 s; two from 30 s on until their streams end after 60 s (400 tokens at 31 ms and more: at most 20 s).
    charged = result.replica_hours["small"] * 3600
    assert 200 + 2 * 30 < charged < 200 + 2 * 52
    assert result.changes == 2
    assert all(record.served for record in result.records)


def test_no_ready_replica_falls_back_in_order_and_nothing_at_all_is_503():
    trace = steady(2, 10)
    decision = Decision({"routine": {"small": 1}, "complex": {"small": 1}}, {"small": (0, 0), "large": (1, 1)})
    result = simulate(fleet(), trace, Fixed(decision))
    assert {record.tier for record in result.records} == {"large"}
    alone = Fleet((fleet().tiers[0],), (TrafficClass("routine", ("small",), OBJECTIVE),))
    result = simulate(alone, trace, Fixed(Decision({"routine": {"small": 1}}, {"small": (0, 0)})))
    summary = summarise(result.records, {})
    assert summary.errors == {"status 503": 20}
    assert summary.overall.attainment == 0


def test_a_controller_sees_rates_and_latency_and_none_of_the_parameters():
    script = Script({0: 2})
    simulate(fleet(), steady(2, 60), script)
    seen = script.seen.tiers["small"]
    assert seen.requests_per_second == pytest.approx(2, rel=0.11)
    assert seen.output_tokens_per_second == pytest.approx(200, rel=0.11)
    assert (seen.desired, seen.ready) == (2, 2)
    assert 0.03 < seen.inter_token_mean_seconds < 0.06
    assert 0.03 < seen.ttft_p95_seconds < 0.5
    assert script.seen.classes["routine"].mean_prompt_tokens == 500
    assert script.seen.classes["complex"].mean_prompt_tokens is None
    assert script.seen.tiers["large"].ttft_p95_seconds is None


def test_an_autoscaler_follows_the_load():
    trace = steady(1, 120) + [dataclasses.replace(r, t_seconds=r.t_seconds + 120) for r in steady(5, 240)]
    decision = Decision({"routine": {"small": 1}, "complex": {"small": 1}}, {"small": (1, 20), "large": (0, 0)})
    scaling = {"small": HpaSpec(target=10, min_replicas=1, max_replicas=20, down_stabilisation_seconds=60)}
    result = simulate(fleet(), trace, Fixed(decision), scaling=scaling, horizon_seconds=600)
    desired = {sample.t_seconds: sample.desired for sample in result.timeline if sample.tier == "small"}
    assert desired[100.0] == 1
    assert 3 <= max(desired.values()) <= 10
    assert 2 <= desired[355.0] <= 5
    assert desired[600.0] == 1


def test_decisions_without_sense_are_errors():
    trace = steady(1, 5)
    with pytest.raises(FleetError, match="needs a weight above 0"):
        simulate(fleet(), trace, Fixed(Decision({"routine": {"small": 0}, "complex": {"small": 1}}, {})))
    decision = Decision({"routine": {"small": 1}, "complex": {"small": 1}}, {"small": (1, 1)})
    with pytest.raises(FleetError, match="'other', which no class of the fleet matches"):
        simulate(fleet(), steady(1, 5, kind="other"), Fixed(decision))
    with pytest.raises(FleetError, match="no tier 'x'"):
        fleet().tier("x")


@pytest.fixture(scope="module")
def comparison():
    trace = traces.generate(traces.TraceSpec(seed=4, duration_seconds=120, base_rps=2, peak_rps=6))
    options = replay.SearchOptions(attainment=0.95, weight_step=0.5, combinations=6, max_replicas=16)
    return fleet(), replay.compare(fleet(), trace, "large", options)


def test_baselines_keep_floors_and_are_ordered(comparison):
    world, compared = comparison
    by_name = {strategy.name: strategy for strategy in compared.strategies}
    assert list(by_name) == ["all-large", "all-large-hpa-70", "best-static", "hpa-70", "hpa-50"]
    static = by_name["best-static"]
    assert static.reached
    assert static.cost_usd < by_name["all-large"].cost_usd
    assert static.quality["complex"] >= 0.7 - 0.06  # random routing scatters around the weights' exact floor
    for strategy in compared.strategies:
        for kind, weights in strategy.weights.items():
            floor = next(traffic.quality_floor for traffic in world.classes if traffic.kind == kind)
            total = sum(weights.values())
            declared = sum(share / total * world.tier(tier).quality[kind] for tier, share in weights.items())
            assert declared >= floor - 1e-9
        assert strategy.provenance == "simulated"


def test_one_replica_less_would_not_attain(comparison):
    world, compared = comparison
    large = next(strategy for strategy in compared.strategies if strategy.name == "all-large")
    count = large.replicas["large"][0]
    trace = traces.generate(traces.TraceSpec(seed=4, duration_seconds=120, base_rps=2, peak_rps=6))
    decision = Decision(large.weights, {"small": (0, 0), "large": (count - 1, count - 1)})
    fewer = replay.assess("fewer", world, trace, Fixed(decision), attainment=0.95)
    assert large.reached
    assert not fewer.reached


def test_results_are_json_that_says_simulated(comparison):
    _, compared = comparison
    data = json.loads(compared.to_json())
    assert data["provenance"] == "simulated"
    assert {strategy["provenance"] for strategy in data["strategies"]} == {"simulated"}
    assert Decimal(data["strategies"][0]["cost_usd"]) > 0
