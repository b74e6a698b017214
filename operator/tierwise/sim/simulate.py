"""A whole fleet in simulated time: classes of requests, weighted tiers, replicas that start, drain and cost money.

Event level: each replica is a `Batcher`, each provider a `ProviderClock`. Requests arrive as the trace says, weights
choose the tier, and the less loaded of two random ready replicas serves, as Envoy's least-request balancer does. A tier
without a ready replica is passed over in the class's order, as the gateway's fallback does. Replicas are charged from
creation to the end of their drain, starting and idle ones included.
"""

import collections.abc
import random
from bisect import bisect_right
from collections.abc import Mapping
from decimal import Decimal
from itertools import accumulate

from tierwise.sim.batching import Sequence
from tierwise.sim.fleet import (
    ClassObservation,
    Controller,
    Decision,
    Fleet,
    FleetError,
    FleetResult,
    Observation,
    ReplicaTier,
    Sample,
    TierObservation,
    TrafficClass,
)
from tierwise.sim.hpa import HpaSpec
from tierwise.sim.outcome import Record, percentile
from tierwise.sim.pool import Placed, Pool, Window
from tierwise.sim.traces import TraceRequest

SAMPLE_SECONDS = 1.0
TIMELINE_SECONDS = 5.0
DRAIN_LIMIT_SECONDS = 900.0
CENT_FRACTION = Decimal("0.000001")


class _Simulation:
    def __init__(
        self,
        fleet: Fleet,
        trace: collections.abc.Sequence[TraceRequest],
        controller: Controller,
        scaling: Mapping[str, HpaSpec],
        horizon_seconds: float,
    ) -> None:
        self.fleet = fleet
        self.trace = trace
        self.controller = controller
        self.horizon = horizon_seconds
        self.records: dict[int, Record] = {}
        self.source = random.Random(f"fleet:{fleet.seed}")  # noqa: S311 - simulation
        self.pools = {
            tier.name: Pool(tier, scaling.get(tier.name), random.Random(f"{fleet.seed}:{tier.name}"), self.records)  # noqa: S311
            for tier in fleet.tiers
        }
        self.classes = {traffic.kind: traffic for traffic in fleet.classes}
        self.arrived: dict[str, list[TraceRequest]] = {kind: [] for kind in self.classes}
        self.decided_at = 0.0
        self.decision: Decision | None = None
        self.changes = -1
        self.timeline: list[Sample] = []
        self.cumulative: dict[str, tuple[list[str], list[float]]] = {}
        # Nobody looks at a fixed fleet between requests: sampling every second would double the time it takes.
        watched = bool(scaling) or controller.interval_seconds < horizon_seconds
        self.step = SAMPLE_SECONDS if watched else TIMELINE_SECONDS

    def run(self) -> FleetResult:
        self._decide(0.0)
        next_tick = self.step
        for index, request in enumerate(self.trace):
            while next_tick <= min(request.t_seconds, self.horizon):
                self._tick(next_tick)
                next_tick += self.step
            self._arrive(index, request)
        while next_tick <= self.horizon:
            self._tick(next_tick)
            next_tick += self.step
        for pool in self.pools.values():
            pool.advance(self.horizon + DRAIN_LIMIT_SECONDS)
        records = [
            self.records.get(index)
            or Record(index, request.kind, request.t_seconds, request.t_seconds, error="not finished")
            for index, request in enumerate(self.trace)
        ]
        return self._result(records)

    def _tick(self, now: float) -> None:
        for name, pool in self.pools.items():
            pool.advance(now)
            pool.sample(now, 300.0)
            if pool.hpa is not None and now % pool.hpa.spec.sync_seconds < SAMPLE_SECONDS:
                pool.autoscale(now)
            if now % TIMELINE_SECONDS < SAMPLE_SECONDS:
                _, running, waiting, ready = pool.samples[-1]
                self.timeline.append(Sample(now, name, len(pool.replicas), ready, int(running + waiting)))
        if now - self.decided_at >= self.controller.interval_seconds:
            self._decide(now)

    def _decide(self, now: float) -> None:
        decision = self.controller.decide(now, self._observe(now))
        if decision != self.decision:
            self.changes += 1
        first = self.decision is None
        self.decision = decision
        self.decided_at = now
        self.cumulative = {kind: _cumulative(kind, decision, self.classes[kind]) for kind in self.classes}
        for name, (least, most) in decision.replicas.items():
            pool = self.pools[name]
            current = len(pool.replicas)
            if pool.hpa is None:
                wanted = least
            else:
                pool.hpa.bound(least, most)
                wanted = max(least, min(most, current))
            pool.scale(now, wanted, ready_at_once=first)
        for pool in self.pools.values():
            pool.window = Window()
        self.arrived = {kind: [] for kind in self.classes}

    def _arrive(self, index: int, request: TraceRequest) -> None:
        now = request.t_seconds
        if request.kind not in self.classes:
            raise FleetError(f"request {index} is of class {request.kind!r}, which no class of the fleet matches")
        self.arrived[request.kind].append(request)
        names, shares = self.cumulative[request.kind]
        chosen = names[min(len(names) - 1, bisect_right(shares, self.source.random() * shares[-1]))]
        for name in (chosen, *(name for name in self.classes[request.kind].tiers if name != chosen)):
            pool = self.pools[name]
            replica = pool.choose(now)
            if replica is None:
                continue
            sequence = Sequence(request.prompt_tokens, request.output_tokens, now)
            sequence.payload = Placed(index, request.kind, name)
            replica.core.submit(sequence)
            pool.window.requests += 1
            return
        self.records[index] = Record(index, request.kind, now, now, status=503, error="status 503")

    def _observe(self, now: float) -> Observation:
        elapsed = max(now - self.decided_at, SAMPLE_SECONDS)
        tiers = {}
        for name, pool in self.pools.items():
            recent = [sample for sample in pool.samples if sample[0] > self.decided_at]
            window = pool.window
            tiers[name] = TierObservation(
                desired=len(pool.replicas),
                ready=sum(replica.ready_at <= now for replica in pool.replicas),
                running=sum(sample[1] for sample in recent) / len(recent) if recent else None,
                waiting=sum(sample[2] for sample in recent) / len(recent) if recent else None,
                ttft_p95_seconds=percentile(sorted(window.ttft), 0.95),
                inter_token_mean_seconds=window.gap_seconds / window.gaps if window.gaps else None,
                requests_per_second=window.requests / elapsed,
                prompt_tokens_per_second=window.prompt_tokens / elapsed,
                output_tokens_per_second=window.output_tokens / elapsed,
            )
        classes = {}
        for kind, arrived in self.arrived.items():
            count = len(arrived)
            classes[kind] = ClassObservation(
                requests_per_second=count / elapsed,
                mean_prompt_tokens=sum(request.prompt_tokens for request in arrived) / count if count else None,
                mean_output_tokens=sum(request.output_tokens for request in arrived) / count if count else None,
            )
        return Observation(tiers, classes)

    def _result(self, records: collections.abc.Sequence[Record]) -> FleetResult:
        hours: dict[str, float] = {}
        cost: dict[str, Decimal] = {}
        for name, pool in self.pools.items():
            if isinstance(pool.tier, ReplicaTier):
                hours[name] = pool.seconds(self.horizon) / 3600
                price = pool.tier.usd_per_replica_hour
                cost[name] = (Decimal(repr(hours[name])) * price).quantize(CENT_FRACTION)
            else:
                mine = [record for record in records if record.tier == name]
                prompt = sum(record.prompt_tokens or 0 for record in mine)
                output = sum(record.completion_tokens or 0 for record in mine)
                profile = pool.tier.profile
                spent = prompt * profile.usd_per_million_input + output * profile.usd_per_million_output
                cost[name] = (spent / 1_000_000).quantize(CENT_FRACTION)
        return FleetResult(records, self.horizon, hours, cost, self.timeline, self.changes)


def _cumulative(kind: str, decision: Decision, traffic: TrafficClass) -> tuple[list[str], list[float]]:
    weights = {name: share for name, share in sorted(decision.weights.get(kind, {}).items()) if share > 0}
    strangers = sorted(set(weights) - set(traffic.tiers))
    if not weights or strangers:
        raise FleetError(f"class {kind!r} needs a weight above 0, on its own tiers only; got {weights or 'none'}")
    return list(weights), list(accumulate(weights.values()))


def simulate(
    fleet: Fleet,
    trace: collections.abc.Sequence[TraceRequest],
    controller: Controller,
    *,
    scaling: Mapping[str, HpaSpec] | None = None,
    horizon_seconds: float | None = None,
) -> FleetResult:
    """Replay a trace on a fleet in simulated time. The same arguments give the same result.

    Args:
        fleet: tiers and classes.
        trace: in order of time.
        controller: decides at 0 and then every `interval_seconds`; its first replicas are ready at once.
        scaling: tier -> autoscaler, whose metric is requests inside a replica; tiers without one have their least.
        horizon_seconds: time that is charged; default: the last arrival. Requests finish after it.

    Raises:
        FleetError: for a class without weights, or a request without a class.
    """
    horizon = horizon_seconds if horizon_seconds is not None else (trace[-1].t_seconds if trace else 0.0)
    return _Simulation(fleet, trace, controller, scaling or {}, horizon).run()
