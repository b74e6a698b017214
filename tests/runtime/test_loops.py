"""The loops: a fault leaves what is good in place, one namespace's fault spares the others, usage is counted once."""

import asyncio

import pytest
import runtime_fakes as make

from tierwise.adapters import kinds
from tierwise.adapters.cluster import ClusterError
from tierwise.core.ledger import Account, Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.plan import Plan, StatusApply
from tierwise.core.world import GatewayReport, Key
from tierwise.render.envoy import gateway
from tierwise.render.envoy.bundle import GatewayConfig
from tierwise.runtime import isolation, loops
from tierwise.runtime.replicas import Replicas
from tierwise.runtime.signals import SignalReader
from tierwise.runtime.telemetry import Health
from tierwise.runtime.trigger import Trigger
from tierwise.runtime.writer import Writer
from tierwise.runtime.zones import Zones


class Gateways:
    def __init__(self):
        self.published = []
        self.said = {}
        self.took = {}

    async def publish(self, config, world):
        self.published.append((config, world))

    def reports(self):
        return self.said

    def good(self):
        return self.took


@pytest.fixture
def gateways():
    return Gateways()


@pytest.fixture
def writer(cluster, store, metrics, now):
    return Writer(cluster, store, metrics, identity="op-0", now=lambda: now, monotonic=lambda: 0.0)


def decider(cluster, store, metrics, *, now, writer, plan):
    trigger = Trigger(0.0)
    signals = SignalReader(None, store, metrics, poke=trigger.poke, now=lambda: now, interval_seconds=1)
    replicas = Replicas(cluster, store, namespace="tierwise-system", identity="op-0")
    return loops.Decider(store, plan, writer, signals, replicas, trigger, metrics, Health(), now=lambda: now)


def failures(metrics, where):
    return sum(
        sample.value
        for family in metrics.errors.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["where"] == where
    )


async def test_a_render_that_fails_leaves_the_last_configuration(store, metrics, gateways, now):
    configs = iter([GatewayConfig({}, {}), ValueError("defect"), GatewayConfig({}, {"a": None})])

    def render(_world):
        config = next(configs)
        if isinstance(config, Exception):
            raise config
        return config

    publisher = loops.Publisher(store, render, gateways, Trigger(), metrics, Health(), now=lambda: now)
    assert await publisher.once()
    assert not await publisher.once()
    assert await publisher.once()
    assert len(gateways.published) == 2
    assert failures(metrics, "render") == 1


async def test_a_configuration_that_cannot_be_published_leaves_the_last_one(store, metrics, gateways):
    async def refuse(_config, _world):
        raise ValueError("defect")

    gateways.publish = refuse
    publisher = loops.Publisher(store, lambda _: GatewayConfig({}, {}), gateways, Trigger(), metrics, Health())
    assert not await publisher.once()
    assert publisher.published is None
    assert failures(metrics, "render") == 1


async def test_figures_that_cannot_be_shown_stop_no_write(cluster, store, metrics, now, writer):
    store.put(kinds.MODEL_TIER, cluster.place(make.tier()))
    plan = Plan(statuses=(StatusApply(make.reference(), {"observedGeneration": 1}),))
    one = decider(cluster, store, metrics, now=now, writer=writer, plan=lambda _: plan)

    def broken(_world, _plan):
        raise ValueError("Duplicated timeseries")

    one.seen = broken
    await one.once()
    assert failures(metrics, "show") == 1
    assert cluster.calls[-1][0] == "status"


async def test_a_change_is_published_after_a_moment_and_many_only_once(store, metrics, gateways):
    trigger = Trigger(0.02)
    store.on_change = lambda _: trigger.poke()
    publisher = loops.Publisher(store, lambda _: GatewayConfig({}, {}), gateways, trigger, metrics, Health())
    task = asyncio.create_task(publisher.run())
    for number in range(50):
        store.put(kinds.MODEL_TIER, make.tier(f"t-{number}"))
    await asyncio.sleep(0.2)
    task.cancel()
    assert len(gateways.published) == 1
    assert len(gateways.published[0][1].tiers) == 50


async def test_a_plan_is_kept_and_carried_out(cluster, store, metrics, now, writer):
    store.put(kinds.MODEL_TIER, cluster.place(make.tier()))
    ref = make.reference()
    account = Account(start=now, end=now, updated=now)
    plan = Plan(
        statuses=(StatusApply(ref, {"observedGeneration": 1}),),
        ledger=Ledger({("team-a", "b"): account}),
        memory=LoopMemory(started=now),
        next_round_seconds=0.05,
    )
    worlds = []

    def planned(world):
        worlds.append(world)
        return plan

    one = decider(cluster, store, metrics, now=now, writer=writer, plan=planned)
    await one.once()
    assert await one.trigger.wait(5) is False, "it is woken by the plan's own clock"
    await one.once()
    assert worlds[1].ledger == plan.ledger
    assert worlds[1].memory == plan.memory
    assert worlds[1].tiers[Key("team-a", "compact")].status.observed_generation == 1
    assert [call for call in cluster.calls if call[0] == "status"] == [("status", "compact", "tierwise")]


async def test_one_namespaces_fault_spares_the_others(cluster, store, metrics, now, writer):
    for namespace in ("bad", "good"):
        store.put(kinds.MODEL_TIER, cluster.place(make.tier(namespace=namespace)))
    kept = Account(start=now, end=now, updated=now)
    store.ledger = Ledger({("bad", "b"): kept})

    def plan(world):
        if any(key.namespace == "bad" for key in world.tiers):
            raise KeyError("defect")
        return Plan(statuses=(StatusApply(make.reference(namespace="good"), {"observedGeneration": 7}),))

    await decider(cluster, store, metrics, now=now, writer=writer, plan=plan).once()
    assert cluster.objects[kinds.MODEL_TIER, "good", "compact"]["status"] == {"observedGeneration": 7}
    assert store.ledger.accounts["bad", "b"] == kept, "what nobody planned is remembered"
    assert failures(metrics, "plan") == 1
    assert failures(metrics, "plan-namespace") == 1


async def test_a_new_leader_forgets_and_the_same_one_remembers(cluster, store, metrics, now, writer):
    one = decider(
        cluster, store, metrics, now=now, writer=writer, plan=lambda w: Plan(ledger=w.ledger, memory=w.memory)
    )
    for undisturbed, expected in ((True, now), (False, None)):
        store.memory = LoopMemory(started=now)
        task = asyncio.create_task(one.decide(undisturbed))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        assert store.memory.started == expected
    assert one.health.beats == {}, "no heartbeat is expected of one that does not decide"


async def test_reports_reach_the_store_and_only_own_statuses_are_written(cluster, store, metrics, writer, gateways):
    gateways.said = {"team-a": GatewayReport("h", "h", 2, 2, 0, "")}
    store.put(kinds.MODEL_TIER, cluster.place(make.tier()))
    seen = []

    def statuses(world):
        seen.append(world.gateways)
        return [StatusApply(make.reference(), {"replicas": {"ready": 1}}, "gateway-op-0")]

    reporter = loops.Reporter(store, gateways, statuses, writer, Trigger(), metrics, Health())
    await reporter.once()
    assert seen == [gateways.said]
    assert cluster.calls[-1] == ("status", "compact", "tierwise-gateway-op-0")


async def test_what_its_gateways_took_is_kept_by_a_replica_that_does_not_decide(
    cluster, store, metrics, writer, gateways, now
):
    store.put_signing_key(b"k" * 32)
    store.put(kinds.MODEL_TIER, make.tier())
    spec = {"models": ["m"], "sensitivity": "Internal", "classes": [{"name": "c", "tiers": [{"name": "compact"}]}]}
    metadata = {"name": "assistant", "namespace": "team-a", "uid": "u", "resourceVersion": "40"}
    store.put(
        kinds.ROUTING_POLICY,
        {"apiVersion": "tierwise.dev/v1alpha1", "kind": "RoutingPolicy", "metadata": metadata, "spec": spec},
    )
    gateways.took = gateway.render(store.snapshot(now)).namespaces
    version = gateways.took["team-a"].hash
    gateways.said = {"team-a": GatewayReport(version, version, 2, 2, 0, "")}
    reporter = loops.Reporter(store, gateways, lambda _: (), writer, Trigger(), metrics, Health())
    await reporter.once()
    assert [call[:2] for call in cluster.calls if call[0] == "apply"] == [("apply", "tierwise-gateway-last-good")]


async def test_live_replicas_are_the_pods_of_our_deployment(cluster, store, now):
    def pod(name, phase="Running"):
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "tierwise-system"},
            "status": {"phase": phase},
        }

    cluster.place(pod("op-1"))
    replicas = Replicas(cluster, store, namespace="tierwise-system", identity="op-0")
    await replicas.once()
    assert store.snapshot(now).live_replicas is None, "it is not one of them: it cannot tell"
    cluster.place(pod("op-0"))
    cluster.place(pod("op-2", "Failed"))
    await replicas.once()
    assert store.snapshot(now).live_replicas == {"op-0", "op-1"}


async def test_gateways_are_counted_by_the_zone_of_their_pods(cluster, store, now):
    def pod(name, zone=None, *, ready=True, **metadata):
        labels = {"topology.kubernetes.io/zone": zone} if zone else {}
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        cluster.place(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "tierwise-system", "labels": labels, **metadata},
                "status": {"phase": "Running", "conditions": conditions},
            }
        )

    changes = []
    store.on_change = changes.append
    zones = Zones(cluster, store, namespace="tierwise-system")
    pod("gateway-0")
    await zones.once()
    assert store.snapshot(now).gateway_zones == {"": 1}, "it has its part of limits, in whatever zone it is"
    pod("gateway-1", "b")
    pod("gateway-2", "a")
    pod("gateway-3", "a")
    pod("gateway-4", "a", ready=False)
    pod("gateway-5", "c", deletionTimestamp="2026-11-25T12:00:00Z")
    await zones.once()
    assert store.snapshot(now).gateway_zones == {"": 1, "a": 2, "b": 1}
    await zones.once()
    assert changes == [True, True], "gateways get it at once, and once"
    cluster.fail["list", "Pod"] = ClusterError("no answer")
    await zones.once()
    assert store.snapshot(now).gateway_zones == {"": 1, "a": 2, "b": 1}


def test_a_restricted_world_has_only_its_namespace(store, now):
    for namespace in ("a", "b"):
        store.put(kinds.MODEL_TIER, make.tier(namespace=namespace))
        store.put(kinds.DEPLOYMENT, make.deployment(namespace=namespace))
    world = store.snapshot(now)
    assert isolation.namespaces(world) == ["a", "b"]
    only = isolation.restrict(world, "a")
    assert [key.namespace for key in (*only.tiers, *only.workloads)] == ["a", "a"]
    assert only.signals is world.signals
