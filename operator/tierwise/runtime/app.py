"""Puts the operator together, runs it, and takes it down in order."""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import structlog
from kubernetes.aio import client as kube

from tierwise import __version__
from tierwise.adapters import cluster as cluster_adapter
from tierwise.adapters import prometheus
from tierwise.adapters.certificates import Material
from tierwise.adapters.kinds import Kind
from tierwise.core.plan import Plan, StatusApply
from tierwise.core.world import World
from tierwise.render.envoy.bundle import GatewayConfig
from tierwise.runtime import heartbeat
from tierwise.runtime.channel import Channel
from tierwise.runtime.clock import SteadyClock, utc_now
from tierwise.runtime.figures import Figures
from tierwise.runtime.leader import Leadership
from tierwise.runtime.loops import Decider, GatewayServer, Publisher, Reporter
from tierwise.runtime.relist import Relister
from tierwise.runtime.replicas import Replicas
from tierwise.runtime.secrets import SecretReader
from tierwise.runtime.signals import SignalReader
from tierwise.runtime.store import Store
from tierwise.runtime.telemetry import Health, Metrics, Server
from tierwise.runtime.trigger import Trigger
from tierwise.runtime.watch import Watch
from tierwise.runtime.writer import Writer
from tierwise.runtime.zones import Zones
from tierwise.settings import Settings

log = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
# Gateways keep what they have and go to another replica: their streams need no long farewell.
DRAIN_SECONDS = 1.0
LEAVE_SECONDS = 5.0
RENDER_RETRY_SECONDS = 5.0


class Gateway(GatewayServer, Protocol):
    """The configuration server for gateways, as this module starts and stops it."""

    def decided(self, age_seconds: float) -> None:
        """Somebody was last seen to decide so many seconds ago."""
        ...

    async def start(self, changed: Callable[[], None]) -> int:
        """Listen; the port. `changed` is called whenever a report changes."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """End all streams."""
        ...

    def observe(self, metrics: Metrics) -> None:
        """Set the metrics of the server."""
        ...


@dataclass(frozen=True, slots=True)
class Rooms:
    """The pure functions that the runtime drives.

    Attributes:
        plan: one planning round.
        statuses: what a replica writes about its own gateways.
        render: the gateways' whole configuration.
    """

    plan: Callable[[World], Plan]
    statuses: Callable[[World], Iterable[StatusApply]]
    render: Callable[[World], GatewayConfig]


class Operator:
    """One replica.

    Args:
        settings: how to run.
        rooms: what to run.
        gateway: makes the configuration server; it is told where its certificate is, None: none, in the clear.
        configuration: how to reach the API server.
        wall: aware UTC clock of all that is planned, counted and told. Certificates and the Lease, which others judge
            by their own clocks, go by this machine's.
    """

    def __init__(
        self,
        settings: Settings,
        rooms: Rooms,
        gateway: Callable[[Callable[[], Material] | None], Gateway],
        configuration: kube.Configuration,
        *,
        wall: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._now = now = SteadyClock(wall)
        self._configuration = configuration
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.metrics = Metrics()
        self.health = Health()
        self._publish, self._report, self._decide = Trigger(), Trigger(0.1), Trigger()
        self.store = Store(settings.identity, self._poke)
        self.cluster = cluster_adapter.connect(configuration, timeout_seconds=settings.api_timeout_seconds)
        self._channel = Channel(self.cluster, namespace=settings.namespace, folder=settings.certificates, now=utc_now)
        self._gateway = gateway(None if settings.insecure_xds else self._channel.material)
        self._prometheus = self._signal_source()
        self._figures = Figures(self.metrics)
        writer = self._writer()
        self.publisher = Publisher(
            self.store, rooms.render, self._gateway, self._publish, self.metrics, self.health, now=now
        )
        self.reporter = Reporter(
            self.store, self._gateway, rooms.statuses, self._writer(), self._report, self.metrics, self.health, now=now
        )
        self.signals = SignalReader(
            self._prometheus,
            self.store,
            self.metrics,
            poke=self._decide.poke,
            now=now,
            interval_seconds=settings.metrics_interval_seconds,
        )
        self.decider = Decider(
            self.store,
            rooms.plan,
            writer,
            self.signals,
            Replicas(self.cluster, self.store, namespace=settings.namespace, identity=settings.identity),
            self._decide,
            self.metrics,
            self.health,
            seen=self._figures.show,
            now=now,
        )
        self.relister = Relister(
            self.cluster,
            self.store,
            namespaces=settings.namespaces,
            interval_seconds=settings.relist_seconds,
            ghosts=lambda kind, count: self.metrics.ghosts.labels(kind=kind.name).inc(count),
        )
        self.secrets = SecretReader(self.cluster, self.store)
        self.zones = Zones(self.cluster, self.store, namespace=settings.namespace)
        self.leadership = Leadership(
            self.cluster,
            name=settings.lease_name,
            namespace=settings.namespace,
            identity=settings.identity,
            decide=self.decider.decide,
            failed=self._fail,
        )
        self._server = Server(
            self.metrics,
            self.health,
            host=settings.http_host,
            port=settings.http_port,
            before_scrape=self._observe,
        )
        self._watch: Watch | None = None

    def stop(self) -> None:
        """Ask the replica to end."""
        self._stopping.set()

    async def run(self) -> int:
        """Run until stopped or failed; the exit code."""
        self.health.wait_for("synced", "everything has to be listed first")
        self.health.wait_for("published", "no configuration for gateways yet")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        http_port = await self._server.start()
        log.info("started", version=__version__, replica=self._settings.identity, http_port=http_port)
        try:
            starting = asyncio.create_task(self._start(), name="start")
            self._tasks["start"] = starting
            await self._until_stopped()
        finally:
            await self._leave()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return EXIT_FAILED if self._failure is not None else EXIT_OK

    async def _start(self) -> None:
        """In order: know everything, have a configuration, be reachable for gateways, take part in deciding."""
        await self.relister.first()
        await self.secrets.first()
        await self.zones.once()
        # After the first list: kopf looks up the kinds once, and those it does not find it never watches.
        self._watch = Watch(
            self._configuration, self._settings.namespaces, self._seen, asyncio.get_running_loop(), self._watch_ended
        )
        self._watch.start()
        self.health.reached("synced")
        self.metrics.synced.set(1)
        if self._settings.insecure_xds:
            self.store.put_signing_key(secrets.token_bytes(32))  # a trial: nothing outlives this process
        else:
            await self._channel.first()
            self.store.put_signing_key(self._channel.signing_key())
            self._spawn("channel", self._channel.run())
        while not await self.publisher.once():  # noqa: ASYNC110 - nothing would set an event: it is tried again
            await asyncio.sleep(RENDER_RETRY_SECONDS)
        xds_port = await self._gateway.start(self._report.poke)
        self.health.reached("published")
        log.info("serving gateways", xds_port=xds_port)
        self._spawn("publisher", self.publisher.run())
        self._spawn("reporter", self.reporter.run())
        self._spawn("relist", self.relister.run())
        self._spawn("secrets", self.secrets.run())
        self._spawn("zones", self.zones.run())
        if self._settings.leader_election:
            self._spawn("leadership", self.leadership.run())
            self._spawn("heartbeat", heartbeat.run(self._gateway, self.leadership.decided_seconds))
        else:
            self._spawn("decider", self.decider.decide(False))
            self._spawn("heartbeat", heartbeat.run(self._gateway, lambda: 0.0))
        self._publish.poke()  # what came in between
        self._report.poke()

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = asyncio.create_task(work, name=name)

    async def _until_stopped(self) -> None:
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            while not self._stopping.is_set():
                done, _ = await asyncio.wait({stopping, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stopping}:
                    error = None if task.cancelled() else task.exception()
                    name = task.get_name()
                    self._tasks.pop(name, None)
                    if name == "start" and error is None:
                        continue
                    # Every other task runs for ever: one that ended is a defect, and a restart the way out.
                    self._fail(error)
        finally:
            stopping.cancel()

    def _fail(self, error: BaseException | None) -> None:
        self._failure = error if error is not None else RuntimeError("a task ended that should not")
        log.critical("a task ended: ending the process", error=repr(error), exc_info=error)
        self._stopping.set()

    async def _leave(self) -> None:
        """Give the Lease up first, serve gateways as long as possible, and be bounded in time throughout."""
        log.info("stopping")
        self.health.wait_for("stopping", "stopping")
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LEAVE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._gateway.stop(DRAIN_SECONDS)
        if self._watch is not None:
            await self._watch.stop()
        if self._prometheus is not None:
            self._prometheus.close()
        await self._server.stop()
        await self.cluster.close()
        log.info("stopped")

    def _poke(self, routes: bool) -> None:  # noqa: FBT001 - the store calls it
        if routes:
            self._publish.poke()
        self._report.poke()
        self._decide.poke()
        self.secrets.poke()

    def _seen(self, kind: Kind, event: str | None, manifest: Mapping[str, Any]) -> None:
        if event == "DELETED":
            self.store.remove(kind, manifest)
        else:
            self.store.put(kind, manifest)

    def _watch_ended(self, reason: str) -> None:
        log.warning("the watch ended and is started anew", reason=reason)
        self.metrics.watch_restarts.inc()
        self.relister.hurry()

    def _observe(self) -> None:
        self.metrics.leading.set(1 if self.leadership.leading else 0)
        age = self.signals.age_seconds()
        self.metrics.signals_age.set(age if age is not None else float("nan"))
        self._gateway.observe(self.metrics)

    def _writer(self) -> Writer:
        return Writer(
            self.cluster,
            self.store,
            self.metrics,
            identity=self._settings.identity,
            now=self._now,
            monotonic=time.monotonic,
        )

    def _signal_source(self) -> prometheus.Prometheus | None:
        settings = self._settings
        if not settings.prometheus_url:
            return None
        return prometheus.Prometheus(
            prometheus.connection(settings.prometheus_url, token_file=settings.prometheus_token_file),
            gateway_selector=settings.gateway_selector,
            window_seconds=settings.metrics_window_seconds,
        )
