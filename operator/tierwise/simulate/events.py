"""The event-level simulator: every request of a trace is sent, served and judged on its own. Pure but for its seed.

It has the interface of `fluid.Fluid`, so the same planner drives both: `scale`, then `step` round by round. A request's
tier is drawn by the weights in force when it arrives, from a number that belongs to the request, so that two runs
differ only by what was decided. Latencies are those of `tierload`. A tier without a ready replica is passed over in the
class's order, as the gateway's fallback does; where no tier is left the request fails.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tierwise.simulate.batches import TierBatches
from tierwise.simulate.fluid import Demand, Flow, FluidClass, FluidTier, Replicas, Slot, TierSlot
from tierwise.simulate.requests import Requests
from tierwise.simulate.tierload import SLOT_SECONDS, Arrivals, Floats, Ints, Served, StepView, TierLoad

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
    _starts: list[float] = field(default_factory=list)

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
        slots = max(1, round(seconds / SLOT_SECONDS))
        ready = {name: self._ready(held, slots) for name, held in self.state.items()}
        slot = Slot(seconds, {}, {tier.name: TierSlot() for tier in self.tiers})
        sent: dict[str, list[tuple[int, Requests]]] = {tier.name: [] for tier in self.tiers}
        for place, each in enumerate(self.classes):
            for name, part in self._choose(each.name, demand, weights.get(each.name, {}), seconds, ready):
                sent[name].append((place, part))
        self._starts.append(self.now)
        self.flows.append(slot.flows)
        for tier in self.tiers:
            held = self.state.get(tier.name)
            if held is None:
                self._provider(tier, sent[tier.name], slot)
                continue
            seen = slot.tiers[tier.name]
            seen.cost = held.existing * tier.price_per_hour * seconds / 3600
            seen.ready, seen.existing = held.ready, held.existing
            self._serve(tier, sent[tier.name], ready[tier.name], slot)
        self.now += seconds
        return slot

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
        demand: Mapping[str, Demand],
        weights: Mapping[str, float],
        seconds: float,
        ready: Mapping[str, Floats],
    ) -> list[tuple[str, Requests]]:
        """The round's requests of a class by the tier that takes them."""
        mine = self.requests[name]
        first = self._places[name]
        last = int(np.searchsorted(mine.t, self.now + seconds, side="left"))
        self._places[name] = last
        if last <= first:
            return []
        part, draws = mine.part(first, last), self._draws[name][first:last]
        if name in demand and demand[name].requests < part.count - 1e-6:
            # Which ones are held back has nothing to do with the tier that they would have gone to.
            passed = (draws * 7919.0) % 1.0 < demand[name].requests / part.count
            part, draws = part.where(passed), draws[passed]
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
            slot.flows[each.name, tier.name] = Flow(
                float(part.count), float(part.count), prompts / part.count, outputs / part.count
            )

    def _serve(self, tier: FluidTier, sent: Sequence[tuple[int, Requests]], ready: Floats, slot: Slot) -> None:
        parts = [
            Arrivals(
                part.t, part.prompt, self._output(self.classes[place], tier.name, part), np.full(part.count, place)
            )
            for place, part in sent
        ]
        arrivals = Arrivals.joined(parts)
        served, view = self._loads[tier.name].step(arrivals, ready)
        self._flow(tier.name, arrivals, view, slot)
        self._judge(tier.name, served)

    def _flow(self, tier: str, arrivals: Arrivals, view: StepView, slot: Slot) -> None:
        seen = slot.tiers[tier]
        seen.utilisation, seen.running, seen.waiting = view.utilisation, view.running, view.waiting
        seen.kv_tokens = view.kv_tokens
        seen.itl = [(count, gap) for count, gap in zip(view.tokens.tolist(), view.gaps.tolist(), strict=True) if count]
        if arrivals.count:
            seen.ttft = _parts(view.ttft)
        for place in np.unique(arrivals.kind).tolist():
            mine = arrivals.kind == place
            flow = Flow(
                float(mine.sum()), 0.0, float(arrivals.prompt[mine].mean()), float(arrivals.output[mine].mean())
            )
            flow.ttft = _parts(view.ttft[mine])
            slot.flows[self.classes[place].name, tier] = flow

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


def _parts(values: Floats) -> list[tuple[float, float]]:
    each = values.size / QUANTILES.size
    return [(each, float(value)) for value in np.quantile(values, QUANTILES)]
