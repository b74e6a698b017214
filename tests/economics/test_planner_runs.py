"""The planner in the benchmark is the operator's own, sees signals alone, and does the same thing twice."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tierwise import planner
from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.core import routing
from tierwise.core.world import Child, GatewayReport, Key
from tierwise.economics import bench, metrics, scenarios, variants
from tierwise.economics.bench import Options
from tierwise.economics.scenarios import NAMESPACE, POLICY
from tierwise.simulate.driver import UID, PlannerLoop
from tierwise.simulate.fluid import Fluid
from tierwise.simulate.run import Runner
from tierwise.simulate.signals import Observer


class WholePlanner(PlannerLoop):
    """`planner.plan` on the whole world: manifests and statuses are merged as the API server would."""

    children: dict

    def decide(self, seconds, signals, state, seen):
        world = self.world(seconds, signals, state)
        shown = {
            key: Child(UID, True, manifest)
            for (kind, key), manifest in self.children.items()
            if kind.startswith("Horiz")
        }
        workloads = {
            key: replace(each, manifest=self.children.get(("Deployment", key), {}))
            for key, each in world.workloads.items()
        }
        report = GatewayReport("simulated", "simulated", 1, 1, 0, "")
        world = replace(world, autoscalers=shown, workloads=workloads, gateways={NAMESPACE: report}, memory=self.memory)
        made = planner.plan(world)
        self.memory = made.memory
        for manifest in made.apply:
            metadata = manifest["metadata"]
            self.children[manifest["kind"], Key(metadata["namespace"], metadata["name"])] = manifest
        for applied in made.statuses:
            key = Key(applied.target.namespace, applied.target.name)
            if applied.target.kind == "ModelTier":
                self.tiers[key] = ModelTier.parse(self.tiers[key].manifest() | {"status": dict(applied.status)})
            elif applied.target.kind == "RoutingPolicy":
                self.policy = RoutingPolicy.parse(self.policy.manifest() | {"status": dict(applied.status)})
        for ref, count in made.scale:
            self._desired[ref.name] = count
        for (kind, key), manifest in self.children.items():
            if kind == "HorizontalPodAutoscaler":
                self._bounds[key.name] = manifest["spec"]["minReplicas"], manifest["spec"]["maxReplicas"]
                target = float(manifest["spec"]["metrics"][0]["pods"]["target"]["averageValue"])
                self._hpas[key.name].spec = replace(self._hpas[key.name].spec, target=target)
        self._autoscale(seconds, state, seen)
        named = {key.name: tier for key, tier in self.tiers.items()}
        self._relief = {
            spec.name: routing.relieved_by(self.policy, spec, named, [ref.name for ref in spec.tiers])
            for spec in self.policy.spec.classes
        }
        return self.wanted()


class Whole(WholePlanner):
    def __init__(self, *args):
        super().__init__(*args)
        self.children = {}


def moves(scenario, kind, slots):
    loop = kind(NAMESPACE, scenarios.tiers_of(scenario), scenarios.policy_of(scenario))
    fluid = Fluid(scenario.tiers, scenario.classes)
    fluid.state["inside"].ready = 1
    runner = Runner(fluid, loop, Observer(NAMESPACE, POLICY), scenario.slot_seconds)
    found = [runner.step(scenario.demand(at))[1] for at in range(slots)]
    return [replace(each, weights=positive(each.weights)) for each in found]


def positive(weights):
    return {name: {tier: share for tier, share in shares.items() if share > 0} for name, shares in weights.items()}


def test_a_round_decides_what_the_operator_would(scenario):
    ours, whole = (moves(scenario, kind, 60) for kind in (PlannerLoop, Whole))
    assert len({str(wanted) for wanted in ours}) > 5, "nothing moves: the comparison says nothing"
    for at, (one, other) in enumerate(zip(ours, whole, strict=True)):
        assert one == other, f"minute {at}"


def test_what_no_signal_shows_changes_no_decision(scenario):
    """While requests go elsewhere an engine's speed is in no signal; as soon as they do not, it is."""
    truth = moves(scenario, PlannerLoop, 20)
    other = moves(variants.misfit(scenario, 1.4), PlannerLoop, 20)
    first = next(at for at, wanted in enumerate(truth) if any("inside" in w for w in wanted.weights.values()))
    assert truth[: first + 1] == other[: first + 1]
    assert truth != other


def test_the_same_run_twice_is_the_same(scenario):
    short = variants.part(scenario, 0, 0.25)
    runs = [bench.planner_run(short, Options(noise=0.3, seed=3))[0] for _ in range(2)]
    assert runs[0] == runs[1]
    assert bench.planner_run(short, Options(noise=0.3, seed=4))[0] != runs[0]


def test_silence_is_stale_signals_not_zeros(scenario):
    loop = PlannerLoop(NAMESPACE, scenarios.tiers_of(scenario), scenarios.policy_of(scenario))
    fluid = Fluid(scenario.tiers, scenario.classes)
    fluid.state["inside"].ready = 1
    runner = Runner(fluid, loop, Observer(NAMESPACE, POLICY), 60.0)
    for at in range(60):
        runner.step(scenario.demand(at))
    time = runner.newest.time
    runner.silent = True
    held = [runner.step(scenario.demand(at))[1] for at in range(60, 65)]
    assert runner.newest.time == time
    assert all(wanted.weights == held[1].weights for wanted in held[1:])
    assert loop.decision.classes[NAMESPACE, POLICY, "chat"].reason in {"Waiting", "MetricsStale"}
    assert runner.newest.time + timedelta(minutes=4) < loop.world(fluid.now, None, fluid.state).now


@pytest.mark.parametrize("name", sorted(variants.FAULTS))
def test_faults_happen(hour, name):
    scenario, base = hour
    made = variants.FAULTS[name](scenario, base)
    score, record = bench.planner_run(made.scenario, None, made.events)
    at = variants.at_fault(scenario)
    assert record.cost[:at] == base.cost[:at] or name in {"cold-start-x3", "confidential"}
    if name not in {"metrics-gone", "replica-lost"}:  # with replicas to spare nobody needs to notice these
        assert (record.cost, record.kept, record.quality) != (base.cost, base.kept, base.quality)
    assert 0 < score.attainment <= 100


def test_a_lost_replica_starts_anew(scenario):
    fluid = Fluid(scenario.tiers, scenario.classes)
    fluid.state["inside"].ready = 2
    fluid.lose("inside")
    assert (fluid.state["inside"].ready, fluid.state["inside"].starting) == (1, [120.0])


def test_a_provider_that_is_down_answers_nobody(scenario):
    fluid = Fluid(scenario.tiers, scenario.classes)
    fluid.down.add("api-large")
    shares = {"chat": {"api-large": 1.0}, "code": {"api-large": 1.0}}
    slot = fluid.step(scenario.demand(0), shares, 60.0)
    assert {tier for _, tier in slot.flows} == {"inside"}, "fallback takes the class's next tier"
    alone = tuple(replace(each, quality={"api-large": 79.0}) for each in scenario.classes)
    slot = Fluid(scenario.tiers, alone, down={"api-large"}).step(scenario.demand(0), shares, 60.0)
    assert all(flow.kept == 0 for flow in slot.flows.values())
    assert slot.cost == 0


def test_what_is_confidential_stays_though_nothing_answers(hour):
    scenario, base = hour
    made = variants.FAULTS["confidential"](scenario, base)
    _, record = bench.planner_run(made.scenario, None, made.events)
    assert metrics.misrouted(made.scenario, record) == 0
    # The count can tell: the same run, judged by another class's rule, has requests at the provider.
    other = replace(scenario, sensitive=frozenset({each.name for each in scenario.classes}))
    assert metrics.misrouted(other, record) > 0
    at = variants.at_fault(scenario)
    assert record.kept["chat"][at] == 0
