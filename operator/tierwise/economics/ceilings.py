"""Runs under a ceiling: of 1.10 and 0.85 times what the loop spends without one, over the same hours.

The ceiling is a NamespaceBudget of a day; the run ends with that day. At first floors hold, then they give way as far
as the ceiling asks for it, and at 100% of what may be spent requests are denied.
"""

from dataclasses import dataclass

from tierwise.economics import bound, metrics, scenarios
from tierwise.economics.bench import CYCLE_SECONDS, WARM_UP_SECONDS, Options
from tierwise.economics.metrics import Score
from tierwise.economics.scenarios import NAMESPACE, POLICY, Scenario
from tierwise.simulate.budgets import BudgetLoop, budget
from tierwise.simulate.fluid import Fluid
from tierwise.simulate.run import Event, Runner, run, warm_up
from tierwise.simulate.signals import Observer

DAY_SECONDS = 86400.0
MOST_HOURS = 24.0
"""A budget of a day can not cap more."""
LADDER: list[dict[str, object]] = [
    {"atPercent": 1, "action": "Downgrade", "belowFloor": True},
    {"atPercent": 98, "action": "Throttle"},
    {"atPercent": 100, "action": "Deny"},
]
"""The same for every scenario and ceiling: floors may give way from the start, but only as far as the ceiling asks."""


@dataclass(frozen=True, slots=True)
class Capped:
    """A run under a ceiling.

    Attributes:
        score: of the requests that were answered. ceiling: USD. spent: USD, as the simulator has it; counted: as the
            ledger has it.
        denied: percent of requests. least_loss: of the worst class, percent, by the offline programme under the same
            ceiling; None where it found none.
        actions: rounds in which each action of the ladder held.
    """

    score: Score
    ceiling: float
    spent: float
    counted: float
    denied: float
    least_loss: float | None
    actions: dict[str, int]

    @property
    def overspend(self) -> float:
        """Percent of the ceiling."""
        return max(0.0, 100 * (self.spent / self.ceiling - 1))


def capped_run(scenario: Scenario, ceiling_usd: float, options: Options) -> Capped:
    """The planner under a ceiling for the whole of the scenario, which lasts a day at most."""
    seconds = scenario.slot_seconds
    begin = DAY_SECONDS - scenario.slots * seconds
    fluid = Fluid(scenario.tiers, scenario.classes, now=begin - WARM_UP_SECONDS)
    loop = BudgetLoop(
        NAMESPACE, scenarios.tiers_of(scenario), scenarios.policy_of(scenario), autoscale=options.autoscale
    )
    runner = Runner(fluid, loop, Observer(NAMESPACE, POLICY, options.noise, options.seed), seconds)
    for name, count in loop.wanted().replicas.items():
        fluid.state[name].ready = count
    cycle = max(1, min(scenario.slots, round(CYCLE_SECONDS / seconds)))
    warm_up(runner, scenario, round(WARM_UP_SECONDS / seconds), cycle=cycle)
    loop.begin()

    def begins(_runner: Runner) -> None:
        loop.budget = budget(NAMESPACE, ceiling_usd, LADDER)

    record = run(runner, scenario, scenario.slots, (Event(0, begins),))
    asked = sum(sum(values) for values in (*record.requests.values(), *record.denied.values()))
    denied = sum(sum(values) for values in record.denied.values())
    try:
        least = bound.schedule(scenario, ceiling=ceiling_usd / scenario.hours).loss
    except bound.BoundError:
        least = None
    return Capped(
        score=metrics.score(scenario, record),
        ceiling=ceiling_usd,
        spent=sum(record.cost),
        counted=float(loop.spent),
        denied=100 * denied / asked if asked else 0.0,
        least_loss=least,
        actions=dict(loop.actions),
    )
