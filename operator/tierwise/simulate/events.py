"""The event-level simulator: every request of a trace is sent, served and judged on its own. Pure but for its seed.

It has the interface of `fluid.Fluid`, so the same planner drives both: `scale`, then `step` round by round. A request's
tier is drawn by the weights in force when it arrives, from a number that belongs to the request, so that two runs
differ only by what was decided. Latencies are those of `tierload`. A tier without a ready replica is passed over in the
class's order, as the gateway's fallback does; where no tier is left the request fails. What comes while a tier is
saturated goes where its class is relieved.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tierwise.sim.replica import ReplicaParams
from tierwise.simulate.batches import TierBatches
from tierwise.simulate.fluid import (
    UNGUARDED,
    Demand,
    Flow,
    FluidClass,
    FluidTier,
    Guard,
    Replicas,
    Slot,
    TierSlot,
)
from tierwise.simulate.inflight import InFlight
from tierwise.simulate.requests import Requests
from tierwise.simulate.tierload import SLOT_SECONDS, Arrivals, Floats, Ints, Served, StepView, TierLoad
from tierwise.simulate.traces import BURST_SECONDS

GUARD_SLOTS = 5
"""Seconds after which requests in flight are counted anew, where a tier gives way when it is saturated."""

QUANTILES = (np.arange(20) + 0.5) / 20
"""A distribution of latencies is handed on as so many equal parts."""


@dataclass(slots=True)
class Events:
    """The engine. `scale` and `step` in order of time, `finish` at the end.

    Attributes:
        tiers, classes: as they truly are.
        requests: class -> its requests.
        order: class -> tiers in the order of fallback; absent: no fallback.
        seed: of the draws.
        now: seconds since the start. state: replicas by tier. down: providers that answer nobody.
        failed: class -> requests that no tier took.
        short: class -> requests served by another tier than the drawn one.
        flows: by round, what became of its requests.
        exact: iteration by iteration (`batches`) instead of in closed form (`tierload`).
        guard: what happens to requests that a tier can not carry.
    """

    tiers: Sequence[FluidTier]
    classes: Sequence[FluidClass]
    requests: Mapping[str, Requests]
    order: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: int = 0
    now: float = 0.0
    state: dict[str, Replicas] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
    _loads: dict[str, TierLoad | TierBatches] = field(default_factory=dict)
    _draws: dict[str, Floats] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)
    flows: list[dict[tuple[str, str], Flow]] = field(default_factory=list)
    exact: bool = False
    guard: Guard = UNGUARDED
    _held: dict[str, InFlight] = field(default_factory=dict)
    _starts: list[float] = field(default_factory=list)
    _tens: dict[tuple[str, str], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tier in self.tiers:
            if tier.params is not None:
                self.state.setdefault(tier.name, Replicas())
                if self.exact:
                    source = random.Random(f"{self.seed}:{tier.name}")  # noqa: S311 - simulation
                    self._loads[tier.name] = TierBatches(tier.params, self.now, source)
                else:
                    self._loads[tier.name] = TierLoad(tier.params, self.now)
        for place, each in enumerate(self.classes):
            draws = np.random.default_rng([self.seed, place])
            self._draws[each.name] = draws.random(self.requests[each.name].count)
            self._places[each.name] = 0

    def scale(self, wanted: Mapping[str, int]) -> None:
        """Ask for so many replicas of each tier now."""
        for tier in self.tiers:
            if tier.name in self.state and tier.name in wanted:
                self.state[tier.name].scale(wanted[tier.name], self.now + tier.startup_seconds)

    def step(self, demand: Mapping[str, Demand], weights: Mapping[str, Mapping[str, float]], seconds: float) -> Slot:
        """One round with these weights (class -> tier -> share).

        Of `demand` only the number of requests counts: where it is smaller than what came, a budget holds some back.

        `Flow.kept` of a slot is complete only after `finish`, when all its requests have ended.
        """
        slot = Slot(seconds, {}, {tier.name: TierSlot() for tier in self.tiers})
        self._starts.append(self.now)
        self.flows.append(slot.flows)
        passed = {each.name: self._passed(each.name, demand, seconds) for each in self.classes}
        self._tens = {}
        left = max(1, round(seconds / SLOT_SECONDS))
        while left > 0:
            # What is in flight decides who is taken next, so it has to be looked at often.
            slots = min(left, GUARD_SLOTS) if self.guard.concurrency else left
            self._advance(slots, passed, weights, slot)
            left -= slots
        for name, saturated, other in slot.passed:
            for tier in (saturated, other):
                slot.peaks[name, tier] = float(self._tens[name, tier].max()) if (name, tier) in self._tens else 0.0
        return slot

    def _advance(
        self, slots: int, passed: Mapping[str, float], weights: Mapping[str, Mapping[str, float]], slot: Slot
    ) -> None:
        """So many slots of `SLOT_SECONDS`, a part of the round that `slot` is about."""
        seconds = slots * SLOT_SECONDS
        ready = {name: self._ready(held, slots) for name, held in self.state.items()}
        sent: dict[str, list[tuple[int, Requests]]] = {tier.name: [] for tier in self.tiers}
        for place, each in enumerate(self.classes):
            for name, part in self._choose(each.name, passed[each.name], weights.get(each.name, {}), seconds, ready):
                sent[name].append((place, part))
        if self.guard.concurrency:
            self._relieve(sent, ready, slot)
            self._count(sent, round(slot.seconds / BURST_SECONDS))
        for tier in self.tiers:
            held = self.state.get(tier.name)
            if held is None:
                self._provider(tier, sent[tier.name], slot)
                continue
            seen = slot.tiers[tier.name]
            seen.cost += held.existing * tier.price_per_hour * seconds / 3600
            seen.ready, seen.existing = held.ready, held.existing
            self._serve(tier, sent[tier.name], ready[tier.name], slot)
        self.now += seconds

    def _passed(self, name: str, demand: Mapping[str, Demand], seconds: float) -> float:
        """Share of a round's requests that budgets let through."""
        mine = self.requests[name]
        count = int(np.searchsorted(mine.t, self.now + seconds, side="left")) - self._places[name]
        asked = demand[name].requests if name in demand else float(count)
        return asked / count if asked < count - 1e-6 else 1.0

    def finish(self) -> None:
        """All that runs ends; then every `Flow.kept` is complete."""
        for name, load in self._loads.items():
            self._judge(name, load.drain())

    def _ready(self, held: Replicas, slots: int) -> Floats:
        """Ready replicas by slot; those that become ready in this round join from their moment on."""
        edges = self.now + SLOT_SECONDS * np.arange(slots)
        counts = np.full(slots, float(held.ready))
        end = self.now + slots * SLOT_SECONDS
        for at in held.starting:
            if at < end:
                counts += edges >= at - 1e-9
        held.ready += sum(at < end for at in held.starting)
        held.starting = [at for at in held.starting if at >= end]
        return counts

    def _choose(
        self,
        name: str,
        passed: float,
        weights: Mapping[str, float],
        seconds: float,
        ready: Mapping[str, Floats],
    ) -> list[tuple[str, Requests]]:
        """The part's requests of a class by the tier that takes them."""
        mine = self.requests[name]
        first = self._places[name]
        last = int(np.searchsorted(mine.t, self.now + seconds, side="left"))
        self._places[name] = last
        if last <= first:
            return []
        part, draws = mine.part(first, last), self._draws[name][first:last]
        if passed < 1:
            # Which ones are held back has nothing to do with the tier that they would have gone to.
            kept = (draws * 7919.0) % 1.0 < passed
            part, draws = part.where(kept), draws[kept]
        names = [tier for tier, share in sorted(weights.items()) if share > 0]
        if not names or part.count == 0:
            self.failed[name] = self.failed.get(name, 0) + part.count
            return []
        sums = np.cumsum([weights[tier] for tier in names])
        drawn = np.minimum(np.searchsorted(sums, draws * sums[-1], side="right"), len(names) - 1)
        second = np.minimum(((part.t - self.now) / SLOT_SECONDS).astype(np.int64), round(seconds / SLOT_SECONDS) - 1)
        chain = [*names, *(tier for tier in self.order.get(name, ()) if tier not in names)]
        up = np.vstack([self._up(tier, ready, second) for tier in chain])
        taken = drawn.astype(np.int64)
        lost = ~up[taken, np.arange(part.count)]
        if lost.any():
            following = [chain.index(tier) for tier in self.order.get(name, ()) if tier in chain]
            for index in following:
                move = lost & up[index]
                taken[move] = index
                lost &= ~move
            for counts, number in ((self.short, int((taken != drawn).sum())), (self.failed, int(lost.sum()))):
                if number:
                    counts[name] = counts.get(name, 0) + number
        return [
            (tier, part.where(chosen)) for index, tier in enumerate(chain) if (chosen := (taken == index) & ~lost).any()
        ]

    def _count(self, sent: Mapping[str, list[tuple[int, Requests]]], tens: int) -> None:
        """Requests by class, tier and ten seconds of the round."""
        for tier, parts in sent.items():
            for place, part in parts:
                ten = ((part.t - self._starts[-1]) / BURST_SECONDS).astype(np.int64)
                held = self._tens.setdefault((self.classes[place].name, tier), np.zeros(max(1, tens)))
                np.add.at(held, np.minimum(ten, held.size - 1), 1.0)

    def _relieve(self, sent: dict[str, list[tuple[int, Requests]]], ready: Mapping[str, Floats], slot: Slot) -> None:
        """What comes while a tier has all the requests that it may have goes where its class is relieved."""
        away: list[tuple[str, int, Requests]] = []
        for tier in self.tiers:
            limit = self.guard.concurrency.get(tier.name)
            if limit is None or tier.params is None:
                continue
            counted = [(place, part) for place, part in sent[tier.name] if self._relief(place, tier.name) is not None]
            if not counted:
                continue
            t = np.concatenate([part.t for _, part in counted])
            lengths = np.concatenate([self._lengths(place, tier, tier.params, part) for place, part in counted])
            order = np.argsort(t, kind="stable")
            slots = ready[tier.name]
            second = np.minimum(((t - self.now) / SLOT_SECONDS).astype(np.int64), slots.size - 1)
            most = np.where(slots[second] > 0, np.maximum(1.0, limit * slots[second]), 0.0)
            taken = np.ones(t.size, dtype=np.bool_)
            held = self._held.setdefault(tier.name, InFlight(tier.params.a_ms / 1e3))
            taken[order] = held.admit(t[order] - self.now, lengths[order], most[order])
            rest = [(place, part) for place, part in sent[tier.name] if self._relief(place, tier.name) is None]
            edges = np.cumsum([0, *(part.count for _, part in counted)])
            for (place, part), first, last in zip(counted, edges[:-1], edges[1:], strict=True):
                mine, other = taken[first:last], self._relief(place, tier.name)
                if mine.any():
                    rest.append((place, part.where(mine)))
                if other is not None and not mine.all():
                    away.append((other, place, part.where(~mine)))
                    key = (self.classes[place].name, tier.name, other)
                    slot.passed[key] = slot.passed.get(key, 0.0) + float((~mine).sum())
            sent[tier.name] = rest
        for name, place, part in away:
            sent[name].append((place, part))

    def _relief(self, place: int, tier: str) -> str | None:
        other = self.guard.relief.get(self.classes[place].name, {}).get(tier)
        return other if other not in self.down else None

    def _lengths(self, place: int, tier: FluidTier, params: ReplicaParams, part: Requests) -> Floats:
        """How long requests take, in tokens of a stream: a prefill is as much slower on a busy replica as a token."""
        prefill = params.p0_ms + params.prompt_ms(part.prompt)
        return np.asarray(prefill / params.a_ms + self._output(self.classes[place], tier.name, part))

    def _up(self, tier: str, ready: Mapping[str, Floats], second: Ints) -> NDArray[np.bool_]:
        counts = ready.get(tier)
        if counts is None:
            return np.full(second.size, tier not in self.down)
        return np.asarray(counts[second] > 0)

    def _output(self, each: FluidClass, tier: str, part: Requests) -> Floats:
        factor = each.output_factor.get(tier, 1.0)
        return part.output if factor == 1.0 else np.maximum(1.0, np.rint(part.output * factor))

    def _provider(self, tier: FluidTier, sent: Sequence[tuple[int, Requests]], slot: Slot) -> None:
        """Its latency is not modelled: what it answers counts as within the objective."""
        for place, part in sent:
            each = self.classes[place]
            output = self._output(each, tier.name, part)
            prompts, outputs = float(part.prompt.sum()), float(output.sum())
            slot.tiers[tier.name].cost += (prompts * tier.price_in + outputs * tier.price_out) / 1e6
            count = float(part.count)
            _add(slot, (each.name, tier.name), Flow(count, count, prompts / part.count, outputs / part.count))

    def _serve(self, tier: FluidTier, sent: Sequence[tuple[int, Requests]], ready: Floats, slot: Slot) -> None:
        parts = [
            Arrivals(
                part.t, part.prompt, self._output(self.classes[place], tier.name, part), np.full(part.count, place)
            )
            for place, part in sent
        ]
        arrivals = Arrivals.joined(parts)
        served, view = self._loads[tier.name].step(arrivals, ready)
        if tier.name in self._held:
            self._held[tier.name].advance(np.where(view.tokens > 0, view.gaps, 0.0))
        self._flow(tier.name, arrivals, view, slot, ready.size * SLOT_SECONDS / slot.seconds)
        self._judge(tier.name, served)

    def _flow(self, tier: str, arrivals: Arrivals, view: StepView, slot: Slot, share: float) -> None:
        """Add what a tier shows of a share of the slot."""
        seen = slot.tiers[tier]
        seen.utilisation += share * view.utilisation
        seen.running += share * view.running
        seen.waiting += share * view.waiting
        seen.kv_tokens += share * view.kv_tokens
        seen.itl += [(count, gap) for count, gap in zip(view.tokens.tolist(), view.gaps.tolist(), strict=True) if count]
        if arrivals.count:
            seen.ttft += _parts(view.ttft)
        for place in np.unique(arrivals.kind).tolist():
            mine = arrivals.kind == place
            flow = Flow(
                float(mine.sum()), 0.0, float(arrivals.prompt[mine].mean()), float(arrivals.output[mine].mean())
            )
            flow.ttft = _parts(view.ttft[mine])
            _add(slot, (self.classes[place].name, tier), flow)

    def _judge(self, tier: str, served: Served) -> None:
        """Count those within their objective, each in the round in which it arrived."""
        if not served.t.size:
            return
        latency = served.latency
        within = np.ones(served.t.size, dtype=np.bool_)
        for place, each in enumerate(self.classes):
            mine = served.kind == place
            wanted = each.objective
            if wanted.ttft_seconds is not None:
                within &= ~mine | (served.ttft <= wanted.ttft_seconds)
            if wanted.inter_token_seconds is not None:
                within &= ~mine | np.isnan(served.gap) | (served.gap <= wanted.inter_token_seconds)
            if wanted.latency_seconds is not None:
                within &= ~mine | (latency <= wanted.latency_seconds)
        rounds = np.searchsorted(self._starts, served.t, side="right") - 1
        keys, counts = np.unique(np.vstack((rounds[within], served.kind[within])), axis=1, return_counts=True)
        for (index, place), count in zip(keys.T.tolist(), counts.tolist(), strict=True):
            self.flows[index][self.classes[place].name, tier].kept += count


def _add(slot: Slot, key: tuple[str, str], more: Flow) -> None:
    """Put a part of a slot's requests to those before."""
    flow = slot.flows.get(key)
    if flow is None:
        slot.flows[key] = more
        return
    count = flow.requests + more.requests
    flow.prompt = (flow.requests * flow.prompt + more.requests * more.prompt) / count
    flow.output = (flow.requests * flow.output + more.requests * more.output) / count
    flow.requests, flow.kept = count, flow.kept + more.kept
    flow.ttft += more.ttft


def _parts(values: Floats) -> list[tuple[float, float]]:
    each = values.size / QUANTILES.size
    return [(each, float(value)) for value in np.quantile(values, QUANTILES)]
