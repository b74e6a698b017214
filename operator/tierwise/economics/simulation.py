"""One simulation for a user's own manifests and traces: made ready, run, and everything kept that happened."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from tierwise.api.namespace_budget import NamespaceBudget, Period
from tierwise.core.signals import ClassKey, Signals
from tierwise.economics.scenarios import Scenario
from tierwise.errors import TierwiseError
from tierwise.simulate import agreement, requests, traces
from tierwise.simulate.agreement import Agreement
from tierwise.simulate.budgets import BudgetLoop
from tierwise.simulate.driver import Wanted
from tierwise.simulate.events import Events
from tierwise.simulate.fluid import Demand, Fluid, Replicas, Slot, TierSlot
from tierwise.simulate.page import Decision
from tierwise.simulate.requests import RequestFeed, Requests
from tierwise.simulate.run import Feed, Runner, admitted
from tierwise.simulate.setting import Setting
from tierwise.simulate.signals import Observer
from tierwise.simulate.traces import SlotTrace

MINUTE = 60.0
WARM_ROUNDS, WARM_SECONDS, CYCLE_SECONDS = 120, 3600.0, 120.0
"""Before a run counts, its first two minutes come again and again: so many rounds, at most an hour."""
SLOTS = ((6 * 3600.0, 60.0), (3600.0, 30.0), (-math.inf, 10.0))
"""(least length of a run, its slot), seconds: of the fluid, and of what it is compared with."""
LONG_PROMPT = 2.5
"""95th percentile of prompts over their mean, where a file per minute says nothing of single ones."""


class Speed(StrEnum):
    """How closely requests are followed."""

    AUTO = "auto"
    EXACT = "exact"
    FAST = "fast"
    FLUID = "fluid"


class SimulationError(TierwiseError):
    """Traces that do not fit the manifests, or nothing to simulate: with what to do."""


@dataclass(frozen=True, slots=True)
class Given:
    """A class's trace as its file has it: single requests, or sums per minute."""

    path: Path
    single: Requests | None
    sums: SlotTrace | None

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        if self.single is not None:
            return math.floor(float(self.single.t[-1])) + 1.0 if self.single.count else 0.0
        return self.sums.slots * self.sums.slot_seconds if self.sums is not None else 0.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose.

    Attributes:
        speed: how closely requests are followed.
        scale: class -> factor on its requests. seed: of all draws.
        hours: first and last hour of the traces; None: all.
        output_factor: (class, tier) -> factor on the lengths of answers.
        long_prompt: class -> 95th percentile of its prompts, tokens.
        round_seconds: between two planning rounds; None: the policies' shortest interval.
        warm_up: whether a system that already runs is simulated, or one that starts from nothing.
    """

    speed: Speed = Speed.AUTO
    scale: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    hours: tuple[float, float] | None = None
    output_factor: Mapping[tuple[str, str], float] = field(default_factory=dict)
    long_prompt: Mapping[str, float] = field(default_factory=dict)
    round_seconds: float | None = None
    warm_up: bool = True


@dataclass(frozen=True, slots=True)
class Round:
    """One planning round and the slot after it. `asked` is what came, `demand` what budgets let through of it."""

    seconds: float
    slot: Slot
    wanted: Wanted
    demand: Mapping[str, Demand]
    asked: Mapping[str, Demand]


@dataclass(slots=True)
class Run:
    """Everything that happened.

    Attributes:
        setting, scenario, given, speed, options: what was asked for.
        round_seconds: between two planning rounds. count: of rounds.
        rounds: with times from the trace's start. decisions: of the planner.
        failed, short: class -> requests that nobody took, and that another tier than the drawn one did.
        actions: by round, what the budget's ladder does. warm_seconds: that came before.
    """

    setting: Setting
    scenario: Scenario
    given: Mapping[str, Given]
    speed: Speed
    options: Options
    round_seconds: float
    count: int
    rounds: list[Round] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    warm_seconds: float = 0.0

    @property
    def hours(self) -> float:
        """Length of the run."""
        return len(self.rounds) * self.round_seconds / 3600


@dataclass(slots=True)
class Watched:
    """The planner, with its moves written down from second `start` on."""

    loop: BudgetLoop
    start: float = math.inf
    moves: list[Decision] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)

    def wanted(self) -> Wanted:
        """What is in force now."""
        return self.loop.wanted()

    def decide(
        self, seconds: float, signals: Signals | None, state: Mapping[str, Replicas], seen: Mapping[str, TierSlot]
    ) -> Wanted:
        """One round of the planner."""
        wanted = self.loop.decide(seconds, signals, state, seen)
        made = self.loop.decision
        if made is not None and seconds >= self.start:
            at = seconds
            for key, outcome in made.classes.items():
                if outcome.moved:
                    name = self.loop.names.get(key, key[2])
                    self.moves.append(Decision(at, f"weights of {name}", outcome.message))
            self.moves += [
                Decision(at, f"replicas of {name}", outcome.message)
                for name, outcome in made.tiers.items()
                if outcome.moved
            ]
            self._ladder(at)
        return wanted

    def _ladder(self, at: float) -> None:
        """The budget's action of this round; a change of it is a decision too."""
        budget = self.loop.budget
        if budget is None:
            return
        held = budget.status.enforcement
        action = held.action.value if held is not None else "Notify"
        if (self.actions and action != self.actions[-1]) or (not self.actions and held is not None):
            rate = held.requests_per_second if held is not None else None
            limit = f", at most {rate} requests/s" if rate is not None else ""
            first = f", {', '.join(held.tiers)} first" if held is not None and held.tiers else ""
            spent = f"; spent {self.loop.spent:.2f} of {budget.spec.ceiling}"
            self.moves.append(Decision(at, f"budget {budget.metadata.name}", f"{action}{limit}{first}{spent}"))
        self.actions.append(action)


def read(path: Path, *, classes: bool) -> dict[str, Given]:
    """A trace file of either form; with `classes`, taken apart by its column `class`.

    Raises:
        RequestTraceError, SlotTraceError: it is no trace.
    """
    if requests.per_minute(path):
        return {"": Given(path, None, traces.read(path, MINUTE))}
    return {name: Given(path, mine, None) for name, mine in requests.read(path, classes=classes).items()}


def has_classes(path: Path) -> bool:
    """Whether a file names the class of each request."""
    return requests.has_column(path, "class")


def prepare(setting: Setting, given: Mapping[str, Given], options: Options) -> Run:
    """Everything that a run needs.

    Raises:
        SimulationError: a class without a trace, or nothing left of the hours.
    """
    missing = [name for name in setting.classes if name not in given]
    if missing:
        raise SimulationError(f"class {missing[0]} has no trace: add --trace {missing[0]}=FILE")
    by_minute = [name for name, each in given.items() if each.sums is not None]
    speed = options.speed
    if speed is Speed.AUTO:
        speed = Speed.FLUID if by_minute else Speed.FAST
    seconds = options.round_seconds or min(p.spec.rebalance.interval.seconds for p in setting.policies.values())
    first, last = options.hours or (0.0, math.inf)
    longest = min(each.seconds for each in given.values())
    begin, end = first * 3600, min(last * 3600, longest)
    width = MINUTE if by_minute else next(slot for least, slot in SLOTS if end - begin >= least)
    seconds = width if speed is Speed.FLUID else max(1.0, float(round(seconds)))
    if end - begin < max(width, seconds):
        raise SimulationError(
            f"nothing is left to simulate: the shortest trace lasts {longest / 3600:.2f} hours, and --hours begins at "
            f"{first:g}; a run needs at least {max(width, seconds):g} s"
        )
    slots = max(1, math.floor((end - begin) / width))
    cut = {name: _cut(name, each, options, begin, end) for name, each in given.items()}
    slotted = {name: _slots(each, width, slots) for name, each in cut.items()}
    classes = tuple(
        setting.fluid_class(
            name,
            options.long_prompt.get(name) or _long_prompt(cut[name]),
            {tier: factor for (mine, tier), factor in options.output_factor.items() if mine == name},
        )
        for name in setting.classes
    )
    large = next(iter(setting.references.values()), setting.tiers[0].name)
    floors = {name: setting.floors.get(name, 0.0) for name in setting.classes}
    scenario = Scenario(setting.namespace, large, floors, setting.tiers, classes, slotted, {})
    return Run(setting, scenario, cut, speed, options, seconds, math.floor((end - begin) / seconds))


def _cut(name: str, each: Given, options: Options, begin: float, end: float) -> Given:
    """The hours and the scale that were asked for."""
    factor = options.scale.get(name, 1.0)
    if each.sums is not None:
        width = each.sums.slot_seconds
        part = each.sums.part(math.floor(begin / width), math.floor(end / width)).scaled(factor)
        return Given(each.path, None, part)
    if each.single is None:
        raise SimulationError(f"{each.path}: holds no trace")
    edges = np.searchsorted(each.single.t, (begin, end)).tolist()
    part_of = each.single.part(*edges).later(-begin)
    return Given(each.path, requests.repeated(part_of, factor, options.seed), None)


def _slots(each: Given, width: float, slots: int) -> SlotTrace:
    if each.sums is not None:
        return each.sums.part(0, slots)
    if each.single is None:
        raise SimulationError(f"{each.path}: holds no trace")
    return each.single.slotted(width, slots)


def _long_prompt(each: Given) -> float:
    if each.single is not None:
        return float(np.quantile(each.single.prompt, 0.95)) if each.single.count else 1.0
    if each.sums is None or not each.sums.requests.sum():
        return 1.0
    return LONG_PROMPT * float(each.sums.prompt_tokens.sum() / each.sums.requests.sum())


def strictest(setting: Setting) -> NamespaceBudget | None:
    """The budget that allows least per hour; its ladder is carried out, others are only counted."""
    days = {Period.DAY: 1.0, Period.WEEK: 7.0, Period.MONTH: 30.0}
    return min(
        setting.budgets.values(), key=lambda each: float(each.spec.ceiling) / days[each.spec.period], default=None
    )


def planner(setting: Setting) -> BudgetLoop:
    """The real planner on the users' objects, and its ledger and ladder."""
    first, *more = setting.policies.values()
    return BudgetLoop(
        setting.namespace,
        dict(setting.tiers_of),
        first,
        others={policy.metadata.name: policy for policy in more},
        names=keys(setting),
    )


def keys(setting: Setting) -> dict[ClassKey, str]:
    """(namespace, policy, class) -> class of the engine."""
    return {
        (setting.namespace, policy.metadata.name, spec.name): name for name, (policy, spec) in setting.classes.items()
    }


def perform(run: Run) -> Run:
    """Simulate; the run is filled in."""
    setting, scenario, seconds = run.setting, run.scenario, run.round_seconds
    watched = Watched(planner(setting))
    named = {name: key for key, name in keys(setting).items()}
    first = next(iter(setting.policies.values())).metadata.name
    observer = Observer(setting.namespace, first, keys=named)
    rounds = min(WARM_ROUNDS, round(WARM_SECONDS / seconds)) if run.options.warm_up else 0
    run.warm_seconds = rounds * seconds
    # What counts begins at second 0, a Monday's first: before it lies only what is not recorded.
    fluid = Fluid(scenario.tiers, scenario.classes, now=-run.warm_seconds)
    for name, count in watched.wanted().replicas.items():
        fluid.state[name].ready = count
    runner = Runner(fluid, watched, observer, seconds)
    slots = run.count
    feed: Feed = scenario
    if run.speed is not Speed.FLUID:
        singles = {name: _single(run, name) for name in scenario.traces}
        feed = RequestFeed(singles, seconds)
    cycle = max(1, min(slots, round(CYCLE_SECONDS / seconds)))
    for at in range(rounds):
        runner.step(feed.demand(at % cycle))
    watched.start = 0.0
    watched.loop.begin()
    watched.loop.budget = strictest(setting)
    if run.speed is not Speed.FLUID:
        runner.fluid = Events(
            scenario.tiers,
            scenario.classes,
            singles,
            {name: setting.order(name) for name in setting.classes},
            run.options.seed,
            state=fluid.state,
            exact=run.speed is Speed.EXACT,
        )
    for at in range(slots):
        demand = feed.demand(at)
        if run.rounds:  # latencies of a round are for the next one's signals only
            for tier in run.rounds[-1].slot.tiers.values():
                tier.itl, tier.ttft = [], []
        slot, wanted = runner.step(demand)
        run.rounds.append(Round(at * seconds, slot, wanted, admitted(demand, wanted, seconds), demand))
    if isinstance(runner.fluid, Events):
        runner.fluid.finish()
        run.failed, run.short = runner.fluid.failed, runner.fluid.short
    run.decisions = watched.moves
    run.actions = watched.actions
    return run


def _single(run: Run, name: str) -> Requests:
    each = run.given[name]
    if each.single is not None:
        return each.single
    return requests.drawn(run.scenario.traces[name], run.options.seed)


def agreements(run: Run) -> dict[str, Agreement]:
    """The fluid simulator beside the event-level one: under the same decisions, and each under the planner.

    The first quarter of the run, at most an hour, brings both up to date and does not count.
    """
    scenario, setting = run.scenario, run.setting
    named = {name: key for key, name in keys(setting).items()}
    policy = next(iter(setting.policies.values())).metadata.name
    first = min(scenario.slots // 4, round(3600 / scenario.slot_seconds))
    singles = {name: each.single for name, each in run.given.items() if each.single is not None}

    def compare(again: BudgetLoop | None) -> Agreement:
        return agreement.compare(
            scenario.tiers,
            scenario.classes,
            scenario.traces,
            scenario,
            planner(setting),
            Observer(setting.namespace, policy, keys=named),
            first=first,
            slots=scenario.slots - first,
            seed=run.options.seed,
            again=again,
            singles=singles if len(singles) == len(scenario.classes) else None,
        )

    return {"the same decisions": compare(None), "each under the planner": compare(planner(setting))}
