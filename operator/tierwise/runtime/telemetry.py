"""What the operator tells about itself: /livez, /readyz and /metrics."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tierwise import __version__

# A loop that has not come round for this long hangs: it wakes at least every half minute, and its work is bounded.
HANGS_AFTER_SECONDS = 180.0


class Metrics:
    """All metrics of one operator replica, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = self._counter, self._gauge
        self.plans = counter("tierwise_plans", "Planning rounds.", "outcome")
        self.plan_seconds = Histogram(
            "tierwise_plan_seconds",
            "Time to plan one round, without writing.",
            registry=self.registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
        )
        self.moves = counter("tierwise_moves", "Decisions that moved weights or replicas.", "kind", "reason")
        self.renders = counter("tierwise_gateway_renders", "Renders of the gateway's configuration.", "outcome")
        self.writes = counter("tierwise_writes", "Writes to the API server that succeeded.", "kind", "verb")
        self.suppressed = counter(
            "tierwise_writes_suppressed", "Writes that were asked for again though nothing had changed since.", "kind"
        )
        self.errors = counter("tierwise_errors", "Failures by where and which.", "where", "error")
        self.events = counter("tierwise_events_recorded", "Kubernetes Events recorded.", "reason")
        self.ghosts = counter("tierwise_relist_ghosts", "Objects whose deletion a watch had missed.", "kind")
        self.watch_restarts = counter("tierwise_watch_restarts", "Restarts of the watch.")
        self.leading = gauge("tierwise_leading", "1 while this replica decides.")
        self.synced = gauge("tierwise_synced", "1 once everything has been listed.")
        self.signals_age = gauge("tierwise_signals_age_seconds", "Time since Prometheus last answered.")
        self.signal_reads = counter("tierwise_signal_reads", "Reads of all signals.", "outcome")
        self.gateways = gauge(
            "tierwise_gateways",
            "Gateways connected to this replica, by what they say of the namespace.",
            "namespace",
            "state",
        )
        self.weight = gauge(
            "tierwise_weight_ratio",
            "Share of a class's requests, 0 to 1.",
            "namespace",
            "policy",
            "class",
            "tier",
            "state",
        )
        self.replicas = gauge("tierwise_replicas", "Replicas of a tier.", "namespace", "tier", "state")
        self.cost_per_hour = gauge(
            "tierwise_cost_per_hour", "What a tier costs per hour.", "namespace", "tier", "currency", "provenance"
        )
        self.budget_rung = gauge(
            "tierwise_budget_rung",
            "Percent of the ceiling at which the rung stands that holds; absent below the first.",
            "namespace",
            "budget",
            "action",
        )
        self.budget = gauge("tierwise_budget", "Amounts of a budget.", "namespace", "budget", "currency", "amount")
        info = gauge("tierwise_build_info", "1; the version is in the label.", "version")
        info.labels(version=__version__).set(1)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)


@dataclass(slots=True)
class Health:
    """Heartbeats of the loops, and what readiness waits for.

    Attributes:
        clock: monotonic seconds.
        waiting_for: what is still to happen before this replica is ready; empty: ready.
    """

    clock: Callable[[], float] = time.monotonic
    beats: dict[str, float] = field(default_factory=dict)
    waiting_for: dict[str, str] = field(default_factory=dict)

    def beat(self, loop: str) -> None:
        """A loop came round."""
        self.beats[loop] = self.clock()

    def forget(self, loop: str) -> None:
        """A loop has ended on purpose."""
        self.beats.pop(loop, None)

    def wait_for(self, name: str, why: str) -> None:
        """Not ready until `reached(name)`."""
        self.waiting_for[name] = why

    def reached(self, name: str) -> None:
        """A precondition of readiness holds, for good."""
        self.waiting_for.pop(name, None)

    def hanging(self) -> Mapping[str, float]:
        """Loops that have not come round in time, and for how many seconds."""
        now = self.clock()
        return {loop: now - beat for loop, beat in sorted(self.beats.items()) if now - beat > HANGS_AFTER_SECONDS}


class Server:
    """Serves the three paths.

    Args:
        metrics, health: what to serve.
        host, port: where; port 0 takes a free one.
        before_scrape: called before each answer of /metrics.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: Health,
        *,
        host: str,
        port: int,
        before_scrape: Callable[[], None] = lambda: None,
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._host = host
        self._port = port
        self._before_scrape = before_scrape
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Start; the port."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._scrape)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        hanging = self._health.hanging()
        if hanging:
            text = "".join(f"{loop}: no sign of life for {seconds:.0f} s\n" for loop, seconds in hanging.items())
            return web.Response(status=503, text=text)
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        waiting = self._health.waiting_for
        if waiting:
            return web.Response(status=503, text="".join(f"{why}\n" for _, why in sorted(waiting.items())))
        return web.Response(text="ok\n")

    async def _scrape(self, _: web.Request) -> web.Response:
        self._before_scrape()
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
