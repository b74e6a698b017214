"""Runs of one scenario: the planner, and what it is compared with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierwise.economics import metrics, scenarios
from tierwise.economics.metrics import Score
from tierwise.economics.scenarios import NAMESPACE, POLICY, Scenario
from tierwise.simulate.driver import PlannerLoop
from tierwise.simulate.fluid import Fluid
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
    record = run(runner, scenario, scenario.slots, events)
    return metrics.score(scenario, record), record


def references(path: Path) -> dict[str, dict[str, Any]]:
    """Reference figures by scenario; empty when there are none."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()).get("scenarios", {})
    return found
