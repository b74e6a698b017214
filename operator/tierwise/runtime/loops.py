"""Three loops: publish to the gateways, report on them, decide. Each takes its own snapshot, none waits for another.

A fault of the pure rooms (a defect of ours) is logged and counted; what was published and written last stays.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from tierwise.core.ledger import Ledger
from tierwise.core.memory import LoopMemory
from tierwise.core.plan import Manifest, Plan, StatusApply
from tierwise.core.world import GatewayReport, World
from tierwise.render.envoy.bundle import GatewayConfig, NamespaceBundle
from tierwise.runtime import isolation, last_good
from tierwise.runtime.clock import utc_now
from tierwise.runtime.faults import FAULTS
from tierwise.runtime.replicas import Replicas
from tierwise.runtime.signals import SignalReader
from tierwise.runtime.store import Store
from tierwise.runtime.telemetry import Health, Metrics
from tierwise.runtime.trigger import Trigger
from tierwise.runtime.writer import Writer

log = structlog.get_logger(__name__)

IDLE_SECONDS = 30.0
# After a round the planner rests as long as it worked, at most this: it takes no more than half a processor for long.
REST_SECONDS = 2.0


class GatewayServer(Protocol):
    """What is used of `adapters.xds.XdsServer`."""

    async def publish(self, config: GatewayConfig, world: World) -> None:
        """Serve this configuration from now on."""
        ...

    def reports(self) -> Mapping[str, GatewayReport]:
        """What the connected gateways say, by namespace."""
        ...

    def good(self) -> Mapping[str, NamespaceBundle]:
        """What they have all acknowledged, by namespace."""
        ...


@dataclass(slots=True)
class Publisher:
    """Renders and publishes on every replica, whether it decides or not.

    Attributes:
        render: World -> GatewayConfig (pure).
        server: takes it.
        published: the last configuration that it took.
    """

    store: Store
    render: Callable[[World], GatewayConfig]
    server: GatewayServer
    trigger: Trigger
    metrics: Metrics
    health: Health
    now: Callable[[], datetime] = utc_now
    published: GatewayConfig | None = None

    async def once(self) -> bool:
        """One render; whether it was published."""
        world = self.store.snapshot(self.now())
        try:
            config = await asyncio.to_thread(self.render, world)
            await self.server.publish(config, world)
        except FAULTS as error:
            self.metrics.renders.labels(outcome="error").inc()
            self.metrics.errors.labels(where="render", error=type(error).__name__).inc()
            log.exception("the gateway's configuration could not be rendered; the last one stays")
            return False
        self.published = config
        if config.until is not None:
            self.trigger.poke_at(max(0.0, (config.until - self.now()).total_seconds()))
        self.metrics.renders.labels(outcome="ok").inc()
        return True

    async def run(self) -> None:
        """Publish after every change, until cancelled."""
        while True:
            self.health.beat("publisher")
            if await self.trigger.wait(IDLE_SECONDS):
                await self.once()


@dataclass(slots=True)
class Reporter:
    """Writes, on every replica, what its own gateways say into the policies' status, and keeps what they took.

    Attributes:
        statuses: World -> what to write (pure).
    """

    store: Store
    server: GatewayServer
    statuses: Callable[[World], Iterable[StatusApply]]
    writer: Writer
    trigger: Trigger
    metrics: Metrics
    health: Health
    now: Callable[[], datetime] = utc_now

    async def once(self) -> None:
        """Compare and write what differs."""
        try:
            self.store.put_gateways(self.server.reports())
            world = self.store.snapshot(self.now())
            wanted = tuple(self.statuses(world))
            good = self.server.good()
            kept = await asyncio.to_thread(self._to_keep, world, good)
        except FAULTS as error:
            self.metrics.errors.labels(where="report", error=type(error).__name__).inc()
            log.exception("what gateways say could not be reported")
            return
        for outcome in (await self.writer.statuses(wanted), await self.writer.manifests(kept)):
            if outcome.retry_seconds is not None:
                self.trigger.poke_later(outcome.retry_seconds)

    def _to_keep(self, world: World, good: Mapping[str, NamespaceBundle]) -> tuple[Manifest, ...]:
        """ConfigMaps with what this replica's gateways acknowledged."""
        if not self.store.signing_key:
            return ()
        wanted, too_large = last_good.manifests(world, good, self.store.signing_key)
        for namespace in too_large:
            self.metrics.errors.labels(where="last-good", error="TooLarge").inc()
            log.warning("the gateway's configuration is too large to be kept", namespace=namespace)
        return wanted

    async def run(self) -> None:
        """Report after every change, until cancelled."""
        while True:
            self.health.beat("reporter")
            await self.trigger.wait(IDLE_SECONDS)
            await self.once()


@dataclass(slots=True)
class Decider:
    """Plans and writes, on the one replica that leads.

    Attributes:
        plan: World -> Plan (pure).
        seen: called with each plan, for metrics.
        failed: namespaces that the last round could not plan.
    """

    store: Store
    plan: Callable[[World], Plan]
    writer: Writer
    signals: SignalReader
    replicas: Replicas
    trigger: Trigger
    metrics: Metrics
    health: Health
    seen: Callable[[World, Plan], None] = lambda _world, _plan: None
    now: Callable[[], datetime] = utc_now
    failed: frozenset[str] = frozenset()

    async def decide(self, undisturbed: bool) -> None:  # noqa: FBT001 - the election calls it
        """Lead until cancelled.

        Args:
            undisturbed: nobody else has led since this replica last did: what it remembers still holds.
        """
        if not undisturbed:
            self.writer.forget()
            self.signals.start_over()
            self.store.ledger = Ledger()
            self.store.memory = LoopMemory()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.signals.run(), name="signals")
                tasks.create_task(self.replicas.run(), name="replicas")
                tasks.create_task(self._rounds(), name="planner")
        finally:
            self.health.forget("planner")

    async def _rounds(self) -> None:
        while True:
            self.health.beat("planner")
            started = time.monotonic()
            await self.once()
            await asyncio.sleep(min(REST_SECONDS, time.monotonic() - started))
            await self.trigger.wait(IDLE_SECONDS)

    async def once(self) -> None:
        """One planning round."""
        world = self.store.snapshot(self.now())
        started = time.monotonic()
        plan = await asyncio.to_thread(self._plan, world)
        self.metrics.plan_seconds.observe(time.monotonic() - started)
        if plan is None:
            return
        self.store.ledger = plan.ledger
        self.store.memory = plan.memory
        self.store.counted(world, self.failed)
        try:
            self.seen(world, plan)
        except FAULTS as error:
            self.metrics.errors.labels(where="show", error=type(error).__name__).inc()
            log.exception("what was planned could not be shown")
        self._tell(plan)
        outcomes = [await self.writer.carry_out(plan)]
        if plan.books and self.store.signing_key:
            signed = [last_good.signed(one, self.store.signing_key) for one in plan.books]
            outcomes.append(await self.writer.manifests(signed))
        self.trigger.poke_later(plan.next_round_seconds)
        for outcome in outcomes:
            if outcome.retry_seconds is not None:
                self.trigger.poke_later(outcome.retry_seconds)

    def _tell(self, plan: Plan) -> None:
        """One line for each decision that moved something, with all that it rested on."""
        for record in plan.records:
            log.info(str(record["record"]), **{name: value for name, value in record.items() if name != "record"})
            for one in record.get("classes", ()):
                if one["moved"]:
                    self.metrics.moves.labels(kind="weights", reason=one["reason"]).inc()
            for one in record.get("tiers", ()):
                if one["moved"]:
                    up = one["planned"] > one["before"]
                    self.metrics.moves.labels(kind="replicas", reason="Up" if up else "Down").inc()

    def _plan(self, world: World) -> Plan | None:
        try:
            plan = self.plan(world)
        except FAULTS as error:
            self.metrics.plans.labels(outcome="error").inc()
            self.metrics.errors.labels(where="plan", error=type(error).__name__).inc()
            log.exception("planning failed; planning each namespace by itself")
        else:
            self.metrics.plans.labels(outcome="ok").inc()
            self.failed = frozenset()
            return plan
        return self._plan_apart(world)

    def _plan_apart(self, world: World) -> Plan | None:
        """One namespace's fault must not stop the others."""
        plans: list[Plan] = []
        failed: set[str] = set()
        for namespace in isolation.namespaces(world):
            try:
                plans.append(self.plan(isolation.restrict(world, namespace)))
            except FAULTS as error:
                self.metrics.errors.labels(where="plan-namespace", error=type(error).__name__).inc()
                log.exception("planning failed; everything of this namespace stays as it is", namespace=namespace)
                failed.add(namespace)
        self.failed = frozenset(failed)
        return isolation.merge(world, plans) if plans else None
