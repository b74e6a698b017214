"""A whole run: the engine, slot by slot, under a controller, and what is recorded of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol

from tierwise.core.signals import Signals
from tierwise.simulate.driver import START, Wanted
from tierwise.simulate.engine import Engine
from tierwise.simulate.fluid import Demand, Guard, Replicas, Slot, TierSlot
from tierwise.simulate.signals import Observer


class Controller(Protocol):
    """Who decides weights and replicas."""

    def wanted(self) -> Wanted:
        """What is in force now."""
        ...

    def decide(
        self, seconds: float, signals: Signals | None, state: Mapping[str, Replicas], seen: Mapping[str, TierSlot]
    ) -> Wanted:
        """What is in force in the next slot."""
        ...


class Feed(Protocol):
    """Where demand comes from."""

    def demand(self, slot: int) -> dict[str, Demand]:
        """Every class's demand in a slot."""
        ...


@dataclass(slots=True)
class Record:
    """What happened, slot by slot.

    Attributes:
        seconds: length of a slot. cost: per slot.
        requests, kept, quality: class -> per slot, requests, those within the objective, sum of scores.
        replicas: tier -> per slot, that existed. desired: tier -> per slot, asked for.
        weights: per slot, class -> tier -> share. guards: per slot, what became of what tiers could not carry.
        tokens_cost: per slot, of providers.
        denied: class -> per slot, requests that a budget kept from being answered; `requests` are without them.
    """

    seconds: float
    cost: list[float] = field(default_factory=list)
    tokens_cost: list[float] = field(default_factory=list)
    requests: dict[str, list[float]] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)
    quality: dict[str, list[float]] = field(default_factory=dict)
    replicas: dict[str, list[int]] = field(default_factory=dict)
    desired: dict[str, list[int]] = field(default_factory=dict)
    weights: list[Mapping[str, Mapping[str, float]]] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)
    denied: dict[str, list[float]] = field(default_factory=dict)

    @property
    def hours(self) -> float:
        """Length of the run."""
        return len(self.cost) * self.seconds / 3600

    def add(self, fluid: Engine, slot: Slot, wanted: Wanted, demand: Mapping[str, Demand]) -> None:
        """One more slot with all that was asked for in it."""
        passed = admitted(demand, wanted, self.seconds)
        self.cost.append(slot.cost)
        self.tokens_cost.append(sum(slot.tiers[tier.name].cost for tier in fluid.tiers if tier.params is None))
        for each in fluid.classes:
            flows = [(tier, flow) for (name, tier), flow in slot.flows.items() if name == each.name]
            self.requests.setdefault(each.name, []).append(passed[each.name].requests)
            self.denied.setdefault(each.name, []).append(demand[each.name].requests - passed[each.name].requests)
            self.kept.setdefault(each.name, []).append(sum(flow.kept for _, flow in flows))
            score = sum(flow.requests * each.quality.get(tier, 0.0) for tier, flow in flows)
            self.quality.setdefault(each.name, []).append(score)
        for name, held in fluid.state.items():
            self.replicas.setdefault(name, []).append(slot.tiers[name].existing)
            self.desired.setdefault(name, []).append(wanted.replicas.get(name, held.existing))
        self.weights.append(wanted.weights)
        self.guards.append(wanted.guard)


@dataclass(slots=True)
class Runner:
    """Drives a controller over a feed.

    Attributes:
        fluid: the engine. controller: who decides. observer: makes signals. seconds: of a slot.
        newest: the last answer of Prometheus.
    """

    fluid: Engine
    controller: Controller
    observer: Observer
    seconds: float
    newest: Signals | None = None
    last: Slot | None = None
    silent: bool = False

    def step(self, demand: Mapping[str, Demand]) -> tuple[Slot, Wanted]:
        """One slot: decide on what is known, then let the slot happen."""
        seen = self.last.tiers if self.last is not None else {}
        wanted = self.controller.decide(self.fluid.now, self.newest, self.fluid.state, seen)
        self.fluid.scale(wanted.replicas)
        passed = admitted(demand, wanted, self.seconds)
        self.fluid.guard = wanted.guard
        slot = self.fluid.step(passed, wanted.weights, self.seconds)
        self.last = slot
        if not self.silent:
            now = START + timedelta(seconds=self.fluid.now)
            self.newest = self.observer.signals(now, self.fluid, slot, passed)
        return slot, wanted


def admitted(demand: Mapping[str, Demand], wanted: Wanted, seconds: float) -> Mapping[str, Demand]:
    """What gateways let through of a slot's demand: nothing of denied classes, a limit's share of limited ones."""
    if not wanted.denied and not wanted.limits:
        return demand
    shares = {name: 0.0 if name in wanted.denied else 1.0 for name in demand}
    for names, rate in wanted.limits:
        asked = sum(demand[name].requests * shares[name] for name in names if name in demand) / seconds
        if asked > rate:
            shares |= {name: shares[name] * rate / asked for name in names if name in shares}
    return {
        name: replace(each, requests=each.requests * shares[name], peak=each.peak * shares[name])
        for name, each in demand.items()
    }


def warm_up(runner: Runner, feed: Feed, slots: int, *, cycle: int) -> None:
    """Let the first `cycle` slots come again and again for `slots` slots, unrecorded: a system that already runs."""
    for at in range(slots):
        runner.step(feed.demand(at % cycle))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens to a running system: before slot `slot`, `happen` is called once."""

    slot: int
    happen: Callable[[Runner], None]


def run(runner: Runner, feed: Feed, slots: int, events: Sequence[Event] = ()) -> Record:
    """All slots of a feed, recorded."""
    record = Record(runner.seconds)
    for at in range(slots):
        for event in events:
            if event.slot == at:
                event.happen(runner)
        demand = feed.demand(at)
        slot, wanted = runner.step(demand)
        record.add(runner.fluid, slot, wanted, demand)
    return record
