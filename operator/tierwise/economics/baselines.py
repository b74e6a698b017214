"""What the loop is compared with: ways to run that know the whole trace beforehand, and then stand still.

- all-large: every request on the reference tier; in-cluster with fixed replicas for its peak, with an autoscaler, and
  with a perfect one.
- best static split: the cheapest fixed weights that keep every floor, with fixed replicas for their peak.
- HPA at 70% and 50%: the cheapest fixed weights under an autoscaler at 70%, with one on utilisation, as
  `k8s.io/kubernetes` computes it: desired = ceil(load / target), 10% tolerance, five minutes before it shrinks.

"Peak" is the 99.9th percentile of slots. Utilisation is of the load at which the strictest objective still holds.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tierwise.core import milp
from tierwise.core.signals import Signals
from tierwise.economics import metrics
from tierwise.economics.bound import BoundError
from tierwise.economics.loads import Loads
from tierwise.economics.metrics import Score
from tierwise.economics.scenarios import NAMESPACE, POLICY, Scenario
from tierwise.simulate.driver import Wanted
from tierwise.simulate.fluid import Fluid, Replicas, TierSlot
from tierwise.simulate.run import Record, Runner, run
from tierwise.simulate.signals import Observer
from tierwise.simulate.traces import Floats

PEAK_PERCENTILE = 99.9
TOLERANCE = 0.1
DOWN_SECONDS = 300.0
SMOOTH_SECONDS = 600.0
"""Weights of the best static split are chosen on means of so long, where a scenario has more than 1,000 slots."""

Shares = Mapping[str, Mapping[str, float]]


@dataclass(slots=True)
class Fixed:
    """Fixed weights and replicas: a `simulate.run.Controller`."""

    weights: Shares
    replicas: dict[str, int]

    def wanted(self) -> Wanted:
        """The same always."""
        return Wanted(self.weights, self.replicas)

    def decide(
        self, _seconds: float, _signals: Signals | None, _state: Mapping[str, Replicas], _seen: Mapping[str, TierSlot]
    ) -> Wanted:
        """The same always."""
        return self.wanted()


@dataclass(slots=True)
class Utilisation:
    """Fixed weights, and an autoscaler on utilisation for each tier.

    Attributes:
        weights: of every slot. replicas: asked for.
        target: utilisation. limits: tier -> load of one replica that counts as 1.
    """

    weights: Shares
    replicas: dict[str, int]
    target: float
    limits: Mapping[str, float]
    _recommended: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def wanted(self) -> Wanted:
        """What is asked for now."""
        return Wanted(self.weights, dict(self.replicas))

    def decide(
        self, seconds: float, _signals: Signals | None, state: Mapping[str, Replicas], seen: Mapping[str, TierSlot]
    ) -> Wanted:
        """One look at the last slot."""
        for name, limit in self.limits.items():
            slot = seen.get(name)
            if slot is None or slot.ready == 0 or limit <= 0:
                continue
            ready = state[name].ready + sum(1 for at in state[name].starting if at <= seconds + 1e-9)
            load = slot.utilisation * slot.ready / limit
            raw = math.ceil(load / self.target - 1e-9)
            if abs(load / max(ready, 1) / self.target - 1) <= TOLERANCE:
                raw = ready
            past = self._recommended.setdefault(name, deque())
            past.append((seconds, raw))
            while past and seconds - past[0][0] >= DOWN_SECONDS:
                past.popleft()
            had = self.replicas[name]
            wanted = raw if raw >= had else min(had, max(value for _, value in past))
            self.replicas[name] = max(1, wanted)
        return self.wanted()


@dataclass(frozen=True, slots=True)
class Split:
    """Fixed weights. peaks: tier -> replicas for their peak. tokens_usd_per_hour: what goes to providers."""

    weights: Shares
    peaks: Mapping[str, int]
    tokens_usd_per_hour: float


def all_large(scenario: Scenario) -> Shares:
    """Every request on the reference tier."""
    return {each.name: {scenario.reference: 1.0} for each in scenario.classes}


def split_of(have: Loads, weights: Shares) -> Split:
    """Peaks and tokens of given weights."""
    peaks = {}
    for name in have.limits:
        load = _load(have, weights, name)
        peaks[name] = math.ceil(float(np.percentile(load, PEAK_PERCENTILE)) - 1e-9) if len(load) else 0
    tokens = sum(
        float(values.mean()) * weights.get(pair[0], {}).get(pair[1], 0.0) for pair, values in have.money.items()
    )
    return Split(weights, {name: count for name, count in peaks.items() if name in have.limits}, tokens)


def _load(have: Loads, weights: Shares, tier: str) -> Floats:
    total = np.zeros(have.slots)
    for (name, other), values in have.mean.items():
        if other == tier:
            total += values * weights.get(name, {}).get(tier, 0.0)
    return total


def best_split(scenario: Scenario, have: Loads, target: float | None = None) -> Split:
    """The cheapest fixed weights that keep every floor.

    Args:
        scenario: with perfect knowledge.
        have: its arrays.
        target: utilisation that an autoscaler holds: replicas cost as many as the mean load needs at it. None: whole
            replicas for the largest (smoothed) slot.
    """
    each = max(1, round(SMOOTH_SECONDS / have.slot_seconds)) if have.slots > 1000 else 1
    if have.slots == 0:
        raise BoundError(f"{scenario.name}: there is no slot")
    model = milp.Model()
    columns: dict[tuple[str, str], int] = {}
    for of in scenario.classes:
        for tier in scenario.tiers:
            pair = of.name, tier.name
            if pair in have.mean or pair in have.money:
                cost = float(have.money[pair].mean()) if pair in have.money else 0.0
                columns[pair] = model.column(cost=cost, upper=1.0)
        mine = [pair for pair in columns if pair[0] == of.name]
        model.row([(columns[pair], 1.0) for pair in mine], lower=1.0, upper=1.0)
        scores = [(columns[pair], of.quality[pair[1]]) for pair in mine]
        model.row(scores, lower=scenario.floors[of.name] - 1e-9)
    for tier in scenario.tiers:
        if tier.name not in have.limits:
            continue
        count = model.column(cost=tier.price_per_hour / (target or 1.0), upper=10_000.0, integer=target is None)
        users = [pair for pair in columns if pair[1] == tier.name and pair in have.mean]
        smooth = [_smooth(have.mean[pair], each if target is None else have.slots) for pair in users]
        for values in zip(*smooth, strict=True):
            load = [(columns[pair], float(value)) for pair, value in zip(users, values, strict=True)]
            model.row([*load, (count, -1.0)], upper=0.0)
    outcome = model.solve(time_limit_seconds=60.0, relative_gap=1e-4)
    if outcome.values is None:
        raise BoundError(f"{scenario.name}: no fixed weights keep every floor")
    found = outcome.values
    weights: dict[str, dict[str, float]] = {}
    for (name, tier_name), place in columns.items():
        weights.setdefault(name, {})[tier_name] = float(found[place])
    return split_of(have, weights)


def _smooth(values: Floats, each: int) -> Floats:
    count = len(values) // each
    means: Floats = values[: count * each].reshape(count, each).mean(axis=1)
    return means


def fixed(scenario: Scenario, split: Split) -> tuple[Score, Record]:
    """Fixed weights and replicas for their peak."""
    return _run(scenario, Fixed(split.weights, dict(split.peaks)))


def autoscaled(scenario: Scenario, have: Loads, split: Split, target: float) -> tuple[Score, Record]:
    """Fixed weights under an autoscaler."""
    used = {name: _load(have, split.weights, name) for name in have.limits}
    first = {name: max(1, math.ceil(float(load[0]) / target - 1e-9)) for name, load in used.items() if load.any()}
    start = {name: first.get(name, 0) for name in have.limits}
    limits = {name: have.limits[name] for name in first}
    return _run(scenario, Utilisation(split.weights, start, target, limits))


def _run(scenario: Scenario, controller: Fixed | Utilisation) -> tuple[Score, Record]:
    fluid = Fluid(scenario.tiers, scenario.classes)
    for name, count in controller.replicas.items():
        fluid.state[name].ready = count
    runner = Runner(fluid, controller, Observer(NAMESPACE, POLICY), scenario.slot_seconds)
    record = run(runner, scenario, scenario.slots)
    return metrics.score(scenario, record), record


def perfect(scenario: Scenario, have: Loads, weights: Shares) -> float:
    """USD/h of given weights with fractional replicas that follow every slot at once, and no start-up."""
    total = split_of(have, weights).tokens_usd_per_hour
    for tier in scenario.tiers:
        if tier.name in have.limits:
            total += tier.price_per_hour * float(_load(have, weights, tier.name).mean())
    return total
