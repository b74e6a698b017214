"""One month of one namespace: real gateways, the real planner, a clock that is turned by hand.

Real: Envoys, our configuration server, every request and answer, Envoy's counters, the adapter that reads them, the
ledger, the planner, the renderer. Modelled, in the injected clock: Prometheus' storage (`month_metrics`), the API
server, the HPA, Pods with cold starts and their engines (`month_cluster`). Each step of the clock: requests are sent
and answered, Pods come and go, gateways are scraped, one planning round is made (and one more at each change of Pods,
as the operator's watch would), and the gateways acknowledge what follows.

A gateway's buckets know no other clock than the machine's. So where the ladder throttles, a step takes at least
`PACE_SECONDS`, and the rate that gateways are given is the ladder's times the speed of the clock (simulated seconds per
real second, as measured over the last steps). Nothing else is scaled.
"""

import asyncio
import dataclasses
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import month_objects as objects
import month_plants
from envoy_lab import Lab, world
from month_cluster import ApiServer, Cluster, Pods
from month_demand import month
from month_metrics import Store
from month_story import Outcome, Story, merge
from month_wire import Clients, Seen, Stub

from tierwise import planner
from tierwise.adapters import queries
from tierwise.adapters.prometheus import Prometheus
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.core import book
from tierwise.core.ledger import Ledger, spend
from tierwise.core.memory import LoopMemory
from tierwise.core.signals import Signals
from tierwise.core.situation import Settings
from tierwise.core.world import Endpoint, Key, World
from tierwise.render.envoy import gateway
from tierwise.render.envoy.options import Authentication
from tierwise.runtime.targets import targets_of

PACE_SECONDS = 0.05
GATEWAYS = ("gateway-0", "gateway-1")
OWN = Key(objects.NAMESPACE, "compact")
BUDGET = Key(objects.NAMESPACE, objects.BUDGET)
ECHO = timedelta(seconds=1)
"""Before the period's end, when its last round is made."""


class MonthLab(Lab):
    """Renders as the operator does, which keeps what did not change."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, authentication=Authentication())
        self.options = dataclasses.replace(self.options, access_log=False)
        self.render = gateway.Renderer(self.options)

    async def publish(self, new: World, change=None) -> None:
        self.world = new
        self.config = self.render(new)
        if change is not None:
            self.config = change(self.config)
        await self.xds.publish(self.config, new)


class Month:
    """Runs a story on gateways that a lab has started."""

    def __init__(self, lab: Lab, story: Story, stubs: dict[str, Stub]) -> None:
        self.lab, self.story, self.stubs = lab, story, stubs
        self.now = story.start
        self.end = story.start + timedelta(days=story.days)
        self.step = story.step
        seconds = story.step.total_seconds()
        self.settings = Settings(
            max_age_seconds=1.5 * seconds, max_gap_seconds=1.5 * seconds, grace_seconds=2 * seconds
        )
        urls = {name: f"http://127.0.0.1:{stub.ports[0]}/v1" for name, stub in stubs.items()}
        self._urls = urls
        ceiling = story.ceiling if story.ceiling is not None else Decimal(1_000_000)
        self.api = ApiServer(
            *objects.tiers(urls["frontier"], urls["mini"]),
            objects.rule(story.step),
            *objects.callers(),
            objects.budget(ceiling, story.start, story.ladder, period=story.period, failureAfter="24h"),
        )
        self.pods = Pods(objects.ENGINE, objects.TARGET, self.now)
        self.cluster = Cluster(self.api, {OWN: self.pods})
        self.metrics = Store(int(seconds), {OWN: self.pods})
        self.metrics.doubled = month_plants.doubled(story.plant)
        self.outcome = Outcome(story)
        self.prices = dict(objects.PRICES)
        self.ledger, self.memory = Ledger(), LoopMemory()
        self.signals: Signals | None = None
        self._fresh = False
        self._recover = False
        self.started: dict[str, datetime] = {}
        self.ports: dict[str, int] = {}
        self.speed = seconds / PACE_SECONDS
        self._hash: object = None
        self._spent = Decimal(0)
        self._paid = Decimal(0)  # seconds of Pods that are in `_spent`
        self._recent: list[Decimal] = []
        self._operator()

    def _operator(self) -> None:
        """A process that has just started: it knows what objects tell, and nothing else."""
        self.ledger, self.memory, self.signals = Ledger(), LoopMemory(), None
        self.prometheus = Prometheus(self.metrics, window_seconds=self.metrics.window_seconds)
        targets = targets_of(self.world(), recover=False)
        self.metrics.engine_queries = queries.engine_queries(targets.in_cluster.values(), self.metrics.window_seconds)
        self._recover = True

    # What the operator sees and does ---------------------------------------------------------------------------------

    def world(self) -> World:
        """As the operator's store would show it."""
        addresses = [Endpoint("127.0.0.1", port, True, True, False) for port in self.stubs["compact"].ports]
        of = {kind: self.api.of(kind) for kind in ("ModelTier", "RoutingPolicy", "NamespaceBudget", "Consumer")}
        base = world(secrets=objects.secrets(), now=self.now)
        signals = self.signals
        if signals is not None and not self._fresh:
            signals = replace(signals, usage={})
        return replace(
            base,
            tiers=of["ModelTier"],
            policies=of["RoutingPolicy"],
            budgets=of["NamespaceBudget"],
            consumers=of["Consumer"],
            workloads=self.cluster.workloads(),
            services=self.api.shelf("Service"),
            autoscalers=self.api.shelf("HorizontalPodAutoscaler"),
            disruption_budgets=self.api.shelf("PodDisruptionBudget"),
            endpoints={OWN: tuple(addresses[: self.pods.ready])},
            books=self.api.books(),
            signals=signals,
            ledger=self.ledger,
            memory=self.memory,
            gateways=self.lab.xds.reports(),
        )

    async def scrape(self) -> None:
        """All gateways, and the operator's reading of it."""
        self.metrics.now = self.now.timestamp()
        for name in GATEWAYS:
            age = (self.now - self.started[name]).total_seconds()
            await self.metrics.scrape(self.lab.http, name, self.ports[name], age)
        targets = targets_of(self.world(), recover=self._recover)
        self.signals = await self.prometheus.read(targets, self.now)
        self._fresh, self._recover = True, False

    def round(self) -> None:
        """One planning round, and what follows from it."""
        seen = self.world()
        made = month_plants.plan(self.story.plant, seen, self.settings)
        self._fresh = False
        self.ledger, self.memory = made.ledger, made.memory
        self.cluster.carry_out(made)
        for applied in planner.gateway_statuses(self.world()):
            self.api.status(applied)
        self.outcome.rounds += 1
        self._rung()

    def _rung(self) -> None:
        if not self.outcome.rungs or self.outcome.rungs[-1][1] != self.action:
            self.outcome.rungs.append((self.now, self.action))

    @property
    def budget(self) -> NamespaceBudget:
        return self.api.of("NamespaceBudget")[BUDGET]

    @property
    def action(self) -> str | None:
        """What the ladder has decided."""
        shown = self.budget.status.enforcement
        return shown.action.value if shown is not None else None

    @property
    def throttled(self) -> bool:
        return self.action == "Throttle"

    def _cheaper(self, seen: Seen) -> int:
        """Requests of the class with the high floor that somebody below it answered, since the ladder said so."""
        if self.action is None:
            return 0
        found = seen.by_caller.items()
        return sum(tokens.requests for (kind, tier, _), tokens in found if kind == "reason" and tier != "frontier")

    def served(self) -> World:
        """What is rendered: the operator's world, with rates in the machine's time."""
        seen = self.world()
        budgets = {key: _sped(one, Decimal(str(round(self.speed, 3)))) for key, one in seen.budgets.items()}
        return replace(seen, budgets=budgets)

    async def publish(self) -> None:
        """Render, and wait until every gateway has taken what differs."""
        shown = self.served()
        config = self._rendered(shown)
        if config == self._hash:
            return
        self._hash = config
        self.outcome.publishes += 1
        await self.lab.settle(shown, month_plants.change(self.story.plant), seconds=20.0)

    def _rendered(self, shown: World) -> object:
        """What gateways would notice."""
        weights = [
            [(entry.name, [(each.tier, each.percent) for each in entry.weights]) for entry in one.status.classes]
            for one in shown.policies.values()
        ]
        decided = [one.status.enforcement for one in shown.budgets.values()]
        gateways = [[(e.connected, e.name) for e in one.status.gateways] for one in shown.policies.values()]
        return weights, decided, gateways, shown.endpoints

    # Time -------------------------------------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """The whole story."""
        story, began = self.story, time.monotonic()
        for name in GATEWAYS:
            self.started[name] = self.now
        clients = Clients(self.lab.options.port, objects.KEYS, f"{objects.NAMESPACE}/{objects.BUDGET}")
        self.round()
        self.pods.now -= objects.ENGINE.startup  # the namespace has been there before the month
        self.pods.born = [self.pods.now] * self.pods.existing
        self.pods.now = self.now
        self.round()
        await self.publish()
        await self.scrape()
        asked = month(story.start, story.days, self.step, story.requests, story.seed, more_days=1)
        try:
            for asks in asked:
                if self.now >= self.end + 3 * self.step:
                    break
                await self._step(clients, asks)
                self._tell()
        finally:
            await clients.close()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    async def _step(self, clients: Clients, asks: list) -> None:
        began = time.monotonic()
        begin, until = self.now, self.now + self.step
        over = begin >= self.end
        seen = Seen()
        half = len(asks) // 2
        await self._happens(begin)
        await clients.send(asks[:half], self._resets(), seen)
        if self._due(self.story.crash, begin):
            await self._crash(clients)
        await clients.send(asks[half:], self._resets(), seen)
        self._load(seen)
        self._pods_go_on(until - ECHO)
        if self.throttled:
            await asyncio.sleep(max(0.0, PACE_SECONDS - (time.monotonic() - began)))
        await self.scrape()
        self.round()
        self._account(seen, over)
        if not over and until == self.end:
            self._close()
        self._pods_go_on(until)
        if until == self.end:
            self.round()  # the next one is half a minute away at most, which is no step of this clock
        await self.publish()
        took = time.monotonic() - began
        self.speed += 0.2 * (self.step.total_seconds() / max(took, PACE_SECONDS) - self.speed)

    def _tell(self) -> None:
        """A line every fifth day: a month takes minutes."""
        passed = self.now - self.story.start
        if passed % timedelta(days=5) < self.step and passed >= self.step:
            under = self.story.ceiling if self.story.ceiling is not None else "no ceiling"
            print(f"under {under}: day {passed.days}, spent {self.outcome.spent:.2f}", file=sys.stderr, flush=True)

    def _pods_go_on(self, until: datetime) -> None:
        """Until then, with a round at each change."""
        for moment in self.pods.advance(until):  # one tier of Pods; a round sees them as they are then
            self.now = moment
            self.round()
        self.now = until

    def _resets(self) -> str:
        end = self.end if self.now < self.end else self._after()
        return f"{end:%Y-%m-%dT%H:%M:%SZ}"

    def _after(self) -> datetime:
        """When the next period ends."""
        if self.story.period == "Month":
            return (self.end + timedelta(days=32)).replace(day=1)
        return self.end + timedelta(days=self.story.days)

    def _due(self, day: float | None, begin: datetime) -> bool:
        if day is None:
            return False
        moment = self.story.start + timedelta(days=day)
        return begin <= moment < begin + self.step

    async def _happens(self, begin: datetime) -> None:
        if self._due(self.story.restart, begin):
            self._operator()  # accounts were kept a moment ago; elsewhere that is every five minutes
            self.round()
        if self._due(self.story.raise_price, begin):
            self.prices["frontier"] = objects.RAISED
            self.api.put(objects.frontier(self._urls["frontier"], objects.RAISED))
            self.round()

    async def _crash(self, clients: Clients) -> None:
        """A gateway dies with what it has counted since its last scrape, and a container takes its place."""
        await asyncio.sleep(0.1)  # a request is counted a moment after its answer has arrived
        gone = await self.metrics.unseen(self.lab.http, GATEWAYS[1], self.ports[GATEWAYS[1]])
        self.outcome.lost += sum(
            (price.of(gone[tier]) for tier, price in self.prices.items() if tier in gone), Decimal(0)
        )
        self.outcome.lost_tokens += round(sum(tokens.prompt + tokens.completion for tokens in gone.values()))
        process = self.lab.envoys[1]
        process.kill()
        await process.wait()
        self.started[GATEWAYS[1]] = self.now + self.step / 2
        self.lab.envoys.remove(process)
        await self.lab.envoy(GATEWAYS[1])
        self.ports[GATEWAYS[1]] = self.lab.metrics_port
        await clients.reconnect()

    def _load(self, seen: Seen) -> None:
        seconds = self.step.total_seconds()
        self.pods.prompts = seen.by_tier["compact"].prompt / seconds
        self.pods.outputs = seen.by_tier["compact"].completion / seconds

    # The independent count --------------------------------------------------------------------------------------------

    def _account(self, seen: Seen, over: bool) -> None:
        """Price what clients and Pods saw of this step."""
        out = self.outcome
        if over:
            out.after.update(seen.statuses)
            return
        tokens = sum((price.of(seen.by_tier[tier]) for tier, price in self.prices.items()), Decimal(0))
        seconds, self._paid = self.pods.seconds - self._paid, self.pods.seconds
        pods = seconds * objects.REPLICA_HOUR / 3600
        out.spent += tokens + pods
        out.replicas += pods
        if out.spent <= (self.story.ceiling or 0):
            self._recent = [*self._recent[-3:], tokens + pods]
            out.steepest = max(self._recent)
        out.downgraded += self._cheaper(seen)
        cheapest = self.prices["mini"]
        out.kept_out += sum((cheapest.of(refused) for refused in seen.kept_out.values()), Decimal(0))
        merge(out.seen, seen)

    def _close(self) -> None:
        """The period's last round has been made."""
        account, out = self.ledger.accounts[objects.NAMESPACE, objects.BUDGET], self.outcome
        found = spend(account)
        out.counted, out.estimated, out.bound = found.counted, found.estimated, found.bound
        out.stubs = {name: dataclasses.replace(stub.log) for name, stub in self.stubs.items()}
        out.most_replicas = self.pods.most
        out.replica_hours = self.pods.seconds / 3600
        lines = book.lines_of(book.settled(account.book))
        out.told = sum((line.cost for line in lines.values()), Decimal(0))
        for (tier, origin), line in lines.items():
            who = out.by_origin[origin.class_name, tier, origin.consumer]
            who.prompt += int(line.input_tokens + line.cached_input_tokens)
            who.cached += int(line.cached_input_tokens)
            who.completion += int(line.output_tokens)
        for name, stub in out.stubs.items():
            if stub != out.seen.by_tier[name]:
                out.unbalanced.append(f"{name}: upstreams say {stub}, clients {out.seen.by_tier[name]}")


def _sped(budget: NamespaceBudget, speed: Decimal) -> NamespaceBudget:
    decided = budget.status.enforcement
    if decided is None:
        return budget
    rates = {
        name: value * speed
        for name in ("requests_per_second", "tokens_per_second")
        if (value := getattr(decided, name)) is not None
    }
    status = budget.status.model_copy(update={"enforcement": decided.model_copy(update=rates)})
    return budget.model_copy(update={"status": status})


async def play(folder: Path, story: Story) -> Outcome:
    """A story from nothing: new gateways, new upstreams."""
    lab = MonthLab(folder)
    stubs = {
        "compact": await Stub("compact").start(objects.REPLICAS),
        "frontier": await Stub("frontier").start(),
        "mini": await Stub("mini").start(),
    }
    try:
        month_ = Month(lab, story, stubs)
        lab.world = month_.served()
        await lab.start()
        month_.ports[GATEWAYS[0]] = lab.metrics_port
        await lab.envoy(GATEWAYS[1])
        month_.ports[GATEWAYS[1]] = lab.metrics_port
        return await month_.run()
    finally:
        await lab.stop()
        for stub in stubs.values():
            await stub.stop()
