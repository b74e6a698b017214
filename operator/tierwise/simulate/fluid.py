"""The fluid engine: one slot of demand, weights and replicas in, latencies, attainment, cost and signals out. Pure.

The model is that of docs/economics.md. With `w` replica-seconds per request, `rho = sum(rate * w) / replicas`:
`ITL = a / (1 - rho)` and `TTFT = prefill / (1 - rho) + ITL + backlog / replicas`. A class's slot has two parts, its
busiest ten seconds and the rest, each with its own load beside the mean load of the other classes; all requests of a
part keep their objective, or none. Load above `SATURATED` becomes backlog, in replica-seconds of work. Replicas that
start cost their price and serve nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tierwise.sim.replica import FloatsT, Objective, ReplicaParams
from tierwise.simulate.traces import BURST_SECONDS

SATURATED = 0.98
"""Utilisation above which work waits."""

LOSS_BISECTIONS = 20
"""What is turned away makes the rest faster, so that more fits: so many halvings find the share to 1e-6."""

LEAST_CHANCE = 1e-9

NEVER_SECONDS = 3600.0
"""Time to first token where no replica is ready."""


@dataclass(frozen=True, slots=True)
class FluidTier:
    """A tier as it truly is.

    Attributes:
        name: of the tier.
        params: of each replica; None for a provider, which is always within the objective.
        price_per_hour: of one replica. price_in, price_out: per million tokens, of a provider.
        startup_seconds: from being asked for until a replica serves.
    """

    name: str
    params: ReplicaParams | None = None
    price_per_hour: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    startup_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FluidClass:
    """A class as it truly is.

    Attributes:
        name: of the class. objective: its latency limits. p95_prompt: tokens, where time to first token is judged.
        quality: tier -> score. output_factor: tier -> factor on the trace's output tokens.
    """

    name: str
    objective: Objective
    p95_prompt: float
    quality: Mapping[str, float] = field(default_factory=dict)
    output_factor: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demand:
    """One class in one slot: requests, mean tokens of one, and requests in the busiest ten seconds."""

    requests: float
    prompt: float
    output: float
    peak: float


@dataclass(frozen=True, slots=True)
class Guard:
    """What happens to requests that a tier can not carry at the moment.

    Attributes:
        concurrency: replica tier -> requests that gateways give each ready replica at a time; absent: any number.
        relief: class -> replica tier -> the tier that takes the requests above it; absent: they wait.
    """

    concurrency: Mapping[str, int] = field(default_factory=dict)
    relief: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


UNGUARDED = Guard()


@dataclass(slots=True)
class Replicas:
    """Replicas of one tier: ready ones, and those that start (moment at which each is ready)."""

    ready: int = 0
    starting: list[float] = field(default_factory=list)
    backlog: float = 0.0

    @property
    def existing(self) -> int:
        """All that are paid for."""
        return self.ready + len(self.starting)

    def scale(self, count: int, ready_at: float) -> None:
        """Ask for so many: new ones are ready at `ready_at`; the newest of those that start are given up first."""
        more = count - self.existing
        if more > 0:
            self.starting += [ready_at] * more
        elif more < 0:
            given_up = min(-more, len(self.starting))
            if given_up:
                del self.starting[-given_up:]
            self.ready = max(0, self.ready + more + given_up)


@dataclass(slots=True)
class Flow:
    """One class on one tier in one slot: requests that it took, those within the objective, tokens, and what was seen.

    `ttft` are pairs (requests, seconds) whose distribution is the class's.
    """

    requests: float = 0.0
    kept: float = 0.0
    prompt: float = 0.0
    output: float = 0.0
    ttft: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class TierSlot:
    """One tier in one slot: money, and means over the slot for the signals."""

    cost: float = 0.0
    ready: int = 0
    existing: int = 0
    utilisation: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    kv_tokens: float = 0.0
    itl: list[tuple[float, float]] = field(default_factory=list)
    ttft: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Slot:
    """What came of one slot.

    Attributes:
        seconds: its length.
        flows: (class, tier) -> what the tier took. tiers: by name.
        passed: (class, saturated tier, the one that relieved it) -> requests that were passed on.
        peaks: (class, tier) -> requests that it took in the busiest ten seconds, where one of the two passed some on.
    """

    seconds: float
    flows: dict[tuple[str, str], Flow]
    tiers: dict[str, TierSlot]
    passed: dict[tuple[str, str, str], float] = field(default_factory=dict)
    peaks: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """In all."""
        return sum(tier.cost for tier in self.tiers.values())


def _turned_away(load: float, beside: float, ready: int, held: float, limit: float) -> float:
    """Share of the requests of a load that come while as many as may be are in flight.

    Erlang's formula, which holds however long requests take, in its normal approximation; latencies are those at the
    load that is taken.

    Args:
        load: of the requests that are counted, replicas.
        beside: of others.
        ready: replicas.
        held: requests in flight of a replica's worth of load, if nothing slowed them down.
        limit: requests that may be in flight.
    """
    if limit <= 0:
        return 1.0
    # The less is taken, the less is turned away of it: one share fits. To repeat the formula until it rests does not
    # find that share near saturation, where latency is so steep that each step goes past it by more than the last.
    least, most = 0.0, 1.0
    for _ in range(LOSS_BISECTIONS):
        lost = (least + most) / 2
        offered = load * held / (1 - min((beside + load * (1 - lost)) / ready, SATURATED))
        if _loss(offered, limit) > lost:
            least = lost
        else:
            most = lost
    return least


def _loss(offered: float, limit: float) -> float:
    """Share of requests that come while `limit` are in flight, where `offered` would be if there were no limit."""
    z = (limit + 0.5 - offered) / math.sqrt(offered)
    # Far above the limit the formula's numerator and denominator both vanish: there what fits is the limit.
    below = 0.5 * math.erfc(-z / math.sqrt(2))
    above = math.exp(-z * z / 2) / math.sqrt(2 * math.pi * offered)
    return min(1.0, above / below) if below > LEAST_CHANCE else 1 - limit / offered


def _busiest(requests: float, peak: float, seconds: float) -> float:
    """Requests in ten seconds of a tier, in its burst or beside it: most of the burst may have been passed on."""
    rest = seconds - BURST_SECONDS
    return max(peak, (requests - peak) * BURST_SECONDS / rest) if rest > 0 else peak


def work_seconds(params: ReplicaParams, prompt: FloatsT, output: FloatsT) -> FloatsT:
    """Replica-seconds of one request: its prefill, and its part of the decode iterations; of each, of arrays."""
    decode = output * (params.b_ms + params.g_ms * (prompt + output / 2) / 1e3)
    return (params.prompt_ms(prompt) + decode) / 1e3


def prefill_seconds(params: ReplicaParams, prompt: float) -> float:
    """One prompt on an idle replica."""
    return (params.p0_ms + params.prompt_ms(prompt)) / 1e3


@dataclass(slots=True)
class Fluid:
    """The engine. `step` once per slot, in order.

    Attributes:
        tiers, classes: as they are. A class's tiers in the order of its `quality`: the next one takes what a provider
            that is down does not answer, as gateways' fallback does.
        now: seconds since the start.
        state: replicas by tier. down: providers that answer nobody.
        guard: what happens to requests that a tier can not carry.
    """

    tiers: Sequence[FluidTier]
    classes: Sequence[FluidClass]
    now: float = 0.0
    state: dict[str, Replicas] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    guard: Guard = UNGUARDED

    def __post_init__(self) -> None:
        for tier in self.tiers:
            if tier.params is not None:
                self.state.setdefault(tier.name, Replicas())

    def scale(self, wanted: Mapping[str, int]) -> None:
        """Ask for so many replicas of each tier now."""
        for tier in self.tiers:
            if tier.name in self.state and tier.name in wanted:
                self.state[tier.name].scale(wanted[tier.name], self.now + tier.startup_seconds)

    def step(self, demand: Mapping[str, Demand], weights: Mapping[str, Mapping[str, float]], seconds: float) -> Slot:
        """One slot with these weights (class -> tier -> share, normalised here)."""
        for held in self.state.values():
            # A replica that becomes ready within a slot serves from the next one on.
            held.ready += sum(1 for at in held.starting if at <= self.now + 1e-9)
            held.starting = [at for at in held.starting if at > self.now + 1e-9]
        slot = Slot(seconds, {}, {tier.name: TierSlot() for tier in self.tiers})
        flows = self._flows(demand, weights, slot)
        for tier in self.tiers:
            if tier.params is None:
                self._provider(tier, demand, flows, slot)
            else:
                self._replicas(tier, tier.params, demand, flows, slot)
        self.now += seconds
        return slot

    def lose(self, tier: str) -> None:
        """One ready replica of a tier dies; its Deployment starts another at once."""
        held = self.state[tier]
        if held.ready > 0:
            held.ready -= 1
            startup = next(each.startup_seconds for each in self.tiers if each.name == tier)
            held.starting.append(self.now + startup)

    def _after_fallback(self, of: FluidClass, shares: Mapping[str, float]) -> dict[str, float]:
        """Where requests end up: those of a provider that is down at the next tier of the class."""
        found = dict(shares)
        for name in self.down & set(found):
            other = next((tier for tier in of.quality if tier not in self.down), None)
            if other is not None:
                found[other] = found.get(other, 0.0) + found.pop(name)
        return found

    def _flows(self, demand: Mapping[str, Demand], weights: Mapping[str, Mapping[str, float]], slot: Slot) -> "_Flows":
        """(class, tier) -> requests that end up there, and how many of them in the class's busiest ten seconds."""
        flows: _Flows = {}
        for each in self.classes:
            asked = demand[each.name]
            for tier, share in self._after_fallback(each, _normal(weights.get(each.name, {}))).items():
                if asked.requests > 0:
                    flows[each.name, tier] = asked.requests * share, asked.peak * share
        for tier_of in self.tiers:
            if tier_of.name in self.guard.concurrency and tier_of.params is not None:
                self._relieve(tier_of.name, tier_of.params, demand, flows, slot)
        for name, saturated, other in slot.passed:
            for tier in (saturated, other):
                slot.peaks[name, tier] = _busiest(*flows[name, tier], slot.seconds)
        return flows

    def _relieve(
        self, name: str, params: ReplicaParams, demand: Mapping[str, Demand], flows: "_Flows", slot: Slot
    ) -> None:
        """What is above a tier's limit in a part of the slot goes where its class is relieved.

        Requests of other classes, which would wait, are not counted by gateways, but they take their part of replicas.
        """
        seconds = slot.seconds
        ready, length = self.state[name].ready, min(BURST_SECONDS, seconds)
        loads, held, beside = {}, 0.0, 0.0
        work: dict[str, float] = {}
        for each in self.classes:
            if (each.name, name) not in flows:
                continue
            asked, rate = demand[each.name], flows[each.name, name][0] / seconds
            output = asked.output * each.output_factor.get(name, 1.0)
            work[each.name] = work_seconds(params, asked.prompt, output)
            other = self.guard.relief.get(each.name, {}).get(name)
            if other is None or other in self.down:
                beside += rate * work[each.name]
                continue
            loads[each.name] = rate * work[each.name]
            held += rate * (prefill_seconds(params, asked.prompt) + (1 + output) * params.a_ms / 1e3)
        load = sum(loads.values())
        if load <= 0:
            return
        limit, each_held = max(1.0, self.guard.concurrency[name] * ready) if ready else 0.0, held / load
        for key, mine in loads.items():
            other = self.guard.relief[key][name]
            requests, peak = flows[key, name]
            away = []
            for count, span, burst in ((peak, length, True), (requests - peak, seconds - length, False)):
                own = count * work[key] / span if span > 0 else 0.0
                every = own + load - mine
                # Beside the mean, next to nothing rounds to nothing.
                lost = _turned_away(every, beside, ready, each_held, limit) if own > 0 and every > 0 else 0.0
                # In the burst of a class what does not fit is put down to it: of the others it is not told apart.
                away.append(count * min(1.0, lost * every / own if burst else lost) if lost > 0 else 0.0)
            if sum(away) > 0:
                there = flows.get((key, other), (0.0, 0.0))
                flows[key, other] = there[0] + sum(away), there[1] + away[0]
                flows[key, name] = requests - sum(away), peak - away[0]
                slot.passed[key, name, other] = sum(away)

    def _provider(self, tier: FluidTier, demand: Mapping[str, Demand], flows: "_Flows", slot: Slot) -> None:
        seen = slot.tiers[tier.name]
        for each in self.classes:
            count, _ = flows.get((each.name, tier.name), (0.0, 0.0))
            asked = demand[each.name]
            if count <= 0:
                continue
            output = asked.output * each.output_factor.get(tier.name, 1.0)
            up = tier.name not in self.down
            slot.flows[each.name, tier.name] = Flow(count, count if up else 0.0, asked.prompt, output)
            if up:
                seen.cost += count * (asked.prompt * tier.price_in + output * tier.price_out) / 1e6

    def _replicas(
        self,
        tier: FluidTier,
        params: ReplicaParams,
        demand: Mapping[str, Demand],
        flows: "_Flows",
        slot: Slot,
    ) -> None:
        held, seen, seconds = self.state[tier.name], slot.tiers[tier.name], slot.seconds
        seen.cost = held.existing * tier.price_per_hour * seconds / 3600
        seen.ready, seen.existing = held.ready, held.existing
        loads: list[_Load] = []
        for each in self.classes:
            count, peak = flows.get((each.name, tier.name), (0.0, 0.0))
            asked = demand[each.name]
            if count <= 0:
                continue
            output = asked.output * each.output_factor.get(tier.name, 1.0)
            flow = Flow(count, 0.0, asked.prompt, output)
            slot.flows[each.name, tier.name] = flow
            loads.append(_Load(each, flow, peak, work_seconds(params, asked.prompt, output)))
        if held.ready:
            self._serve(params, held, seen, loads, seconds)
            return
        for load in loads:
            load.flow.ttft.append((load.flow.requests, NEVER_SECONDS))
            seen.waiting += load.flow.requests

    @staticmethod
    def _serve(params: ReplicaParams, held: Replicas, seen: TierSlot, loads: Sequence["_Load"], seconds: float) -> None:
        """Latencies of a slot, who keeps the objective, and what is left over."""
        count = held.ready
        work = sum(load.flow.requests * load.work for load in loads)
        mean = work / (seconds * count)
        seen.utilisation = mean
        # What waits is worked off by what is left below saturation, or grows by what is above.
        held.backlog = max(0.0, held.backlog + (mean - SATURATED) * count * seconds)
        burst = min(BURST_SECONDS, seconds)
        running = context = 0.0
        for load in loads:
            flow = load.flow
            others = mean - flow.requests * load.work / (seconds * count)
            for requests, length in ((load.peak, burst), (flow.requests - load.peak, seconds - burst)):
                if length <= 0 or requests <= 0:
                    continue
                rho = others + requests * load.work / (length * count)
                busy = min(rho, SATURATED)
                itl = params.a_ms / 1e3 / (1 - busy)
                at_mean, at_p95 = (
                    prefill_seconds(params, prompt) / (1 - busy) + itl + held.backlog / count
                    for prompt in (flow.prompt, max(flow.prompt, load.of.p95_prompt))
                )
                if rho < 1 and load.of.objective.met(at_p95, itl, at_p95 + flow.output * itl):
                    flow.kept += requests
                pairs = [(0.95 * requests, at_mean), (0.05 * requests, at_p95)]
                flow.ttft += pairs
                seen.ttft += pairs
                seen.itl.append((requests * flow.output, itl))
                sequences = requests / seconds * (flow.output * itl + prefill_seconds(params, flow.prompt) / (1 - busy))
                running += sequences
                context += sequences * (flow.prompt + flow.output / 2)
        most = count * params.max_sequences
        requests = sum(load.flow.requests for load in loads)
        seen.running = min(running, most)
        seen.kv_tokens = min(context, count * params.kv_tokens)
        seen.waiting = max(0.0, running - most) + (held.backlog * requests / work if work > 0 else 0.0)


_Flows = dict[tuple[str, str], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Load:
    """One class on one tier in one slot: what flows, requests in its busiest ten seconds, work of one request."""

    of: FluidClass
    flow: Flow
    peak: float
    work: float


def _normal(shares: Mapping[str, float]) -> dict[str, float]:
    total = sum(share for share in shares.values() if share > 0)
    return {name: share / total for name, share in shares.items() if share > 0} if total > 0 else {}
