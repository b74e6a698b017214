"""Runs of one scenario: the planner, and what it is compared with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierwise.core.signals import Signals
from tierwise.economics import bound, metrics, scenarios
from tierwise.economics.bound import Schedule
from tierwise.economics.metrics import Score
from tierwise.economics.scenarios import NAMESPACE, POLICY, Scenario
from tierwise.simulate.driver import PlannerLoop, Wanted
from tierwise.simulate.fluid import Fluid, Replicas, TierSlot
from tierwise.simulate.run import Event, Record, Runner, run, warm_up
from tierwise.simulate.signals import Observer

WARM_UP_SECONDS = 3600.0
CYCLE_SECONDS = 120.0
"""Before a run counts, its first two minutes come again and again for an hour: every way starts as one that runs."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is varied. `noise`: relative error of every signal; `autoscale`: an HPA within the plan's bounds."""

    noise: float = 0.0
    seed: int = 0
    autoscale: bool = True


def planner_run(
    scenario: Scenario, options: Options | None = None, events: Sequence[Event] = ()
) -> tuple[Score, Record]:
    """The real planner over the scenario.

    Args:
        scenario: as it truly is, with what is declared of it.
        options: what is varied.
        events: that happen meanwhile.
    """
    chosen = options or Options()
    fluid = Fluid(scenario.tiers, scenario.classes)
    loop = PlannerLoop(
        NAMESPACE, scenarios.tiers_of(scenario), scenarios.policy_of(scenario), autoscale=chosen.autoscale
    )
    runner = Runner(fluid, loop, Observer(NAMESPACE, POLICY, chosen.noise, chosen.seed), scenario.slot_seconds)
    for name, count in loop.wanted().replicas.items():
        fluid.state[name].ready = count
    cycle = max(1, min(scenario.slots, round(CYCLE_SECONDS / scenario.slot_seconds)))
    if scenario.slots:
        warm_up(runner, scenario, round(WARM_UP_SECONDS / scenario.slot_seconds), cycle=cycle)
    loop.begin()
    record = run(runner, scenario, scenario.slots, events)
    return metrics.score(scenario, record), record


@dataclass(slots=True)
class _Replay:
    """The integer replay as a controller: replicas are there in the slot that needs them."""

    replicas: Mapping[str, Sequence[int]]
    shares: Mapping[tuple[str, str], Sequence[float]]
    slot: int = -1

    def wanted(self) -> Wanted:
        """What the schedule has in this slot."""
        at = max(self.slot, 0)
        weights: dict[str, dict[str, float]] = {}
        for (name, tier), values in self.shares.items():
            weights.setdefault(name, {})[tier] = float(values[at])
        return Wanted(weights, {name: int(values[at]) for name, values in self.replicas.items()})

    def decide(
        self, _seconds: float, _signals: Signals | None, state: Mapping[str, Replicas], _seen: Mapping[str, TierSlot]
    ) -> Wanted:
        """The next slot."""
        self.slot += 1
        wanted = self.wanted()
        for name, count in wanted.replicas.items():
            state[name].ready = count
        return wanted


def replay_run(scenario: Scenario, found: Schedule) -> Score:
    """What the integer replay keeps. Its cost is `bound.replay_cost`: here starts are free."""
    replicas = {name: values.tolist() for name, values in bound.rounded(found).items()}
    shares = {pair: values.tolist() for pair, values in found.shares.items()}
    fluid = Fluid(scenario.tiers, scenario.classes)
    runner = Runner(fluid, _Replay(replicas, shares), Observer(NAMESPACE, POLICY), scenario.slot_seconds)
    return metrics.score(scenario, run(runner, scenario, scenario.slots))


def references(path: Path) -> dict[str, dict[str, Any]]:
    """Reference figures by scenario; empty when there are none."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()).get("scenarios", {})
    return found
