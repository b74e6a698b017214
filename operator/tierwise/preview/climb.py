"""A budget's ladder, played through a period at the stated demand: which rung is reached when, and what it does.

The operator's own rules say both: what is committed and in flight, which rung holds, the downgrade's mix, the rate of a
throttle. Between two rungs a namespace costs the same each hour, so that the moment of the next follows. Each budget
is played alone. Everything is estimated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.namespace_budget_status import LadderAction, NamespaceBudgetStatus
from tierwise.core import decide, enforcement, outlook, scaling, tier_status
from tierwise.core.decision import Decision
from tierwise.core.enforcement import Standing
from tierwise.core.ladder import LadderMemory
from tierwise.core.ledger import Account
from tierwise.core.outlook import Outlook
from tierwise.core.signals import ClassKey
from tierwise.core.situation import Situation
from tierwise.preview.metrics import Load

Loads = Mapping[ClassKey, Load]


@dataclass(frozen=True, slots=True)
class Step:
    """One rung of the ladder in a period.

    Attributes:
        percent, action: of the rung.
        at: when it is reached, in the budget's time zone; None: not within the period. hours: after the beginning.
        per_hour: what the namespace costs from then on, currency units. None with `at`.
        passes: requests/s that a throttle or a denial lets through, of `wanted` that it touches; None: all.
        does: what it does, in words.
    """

    percent: int
    action: LadderAction
    at: datetime | None = None
    hours: Decimal | None = None
    per_hour: Decimal | None = None
    passes: float | None = None
    wanted: float | None = None
    does: str = ""


@dataclass(frozen=True, slots=True)
class Climb:
    """A ladder in a period, or in what is left of one.

    Attributes:
        start, end: of what is played, in the budget's time zone. spent: before. total: at the end, under the ladder.
        steps: all rungs, in ascending order.
    """

    start: datetime
    end: datetime
    spent: Decimal
    total: Decimal
    steps: tuple[Step, ...]


def play(
    budget: NamespaceBudget,
    seen: Situation,
    loads: Loads,
    per_hour: Decimal,
    *,
    period: tuple[datetime, datetime],
    now: datetime,
    spent: Decimal = Decimal(0),
) -> Climb:
    """Play a period from `now` to its end.

    Args:
        budget: what it says, not how it stands.
        seen: the namespace as it settles without a ceiling, at the stated demand.
        loads: that demand.
        per_hour: what it costs then in the budget's currency.
        period: its start and end, aware.
        now: within it.
        spent: of it so far.
    """
    place, (start, end) = ZoneInfo(budget.spec.time_zone), period
    bare = budget.model_copy(update={"status": NamespaceBudgetStatus()})
    account = Account(start=start, end=end, updated=now, currency=budget.spec.currency)
    memory, at, total, rate = LadderMemory(), now, spent, per_hour
    reached: dict[int, Step] = {}
    # A rung changes what is in flight, so that the next one may be looked for twice.
    for _ in range(3 * (len(budget.spec.ladder) + 1)):
        here = replace(seen, now=at)
        look = replace(outlook.outlook(here, bare, replace(account, updated=at)), spent=total)
        standing = enforcement.climbed(
            bare, replace(account, updated=at), look, memory, blind=False, present_per_hour=float(per_hour)
        )
        before, account, memory = account.rung or 0, standing.account, standing.memory
        steps = [step for step in budget.spec.ladder if before < step.at_percent <= (account.rung or 0)]
        if steps:
            effect = _effect(here, standing, loads, rate)
            rate, seen = effect.per_hour, effect.after
            moment = at.astimezone(place)
            hours = Decimal(str((at - now).total_seconds())) / 3600
            for step in steps[:-1]:
                does = f"as the {steps[-1].at_percent}% rung, which is reached with it"
                reached[step.at_percent] = Step(step.at_percent, step.action, moment, hours, rate, does=does)
            for step in steps[-1:]:
                reached[step.at_percent] = Step(
                    step.at_percent,
                    step.action,
                    moment,
                    hours,
                    rate,
                    effect.passes if step.action >= LadderAction.THROTTLE else None,
                    effect.wanted if step.action >= LadderAction.THROTTLE else None,
                    effect.words(step.action),
                )
        seconds = _seconds(look, rate, [s.at_percent for s in budget.spec.ladder if s.at_percent > (account.rung or 0)])
        if seconds is None or at + timedelta(seconds=seconds) >= end:
            break
        at += timedelta(seconds=seconds)
        total += rate * seconds / 3600
    total += rate * Decimal(str((end - at).total_seconds())) / 3600
    return Climb(
        now.astimezone(place),
        end.astimezone(place),
        spent,
        total,
        tuple(reached.get(s.at_percent, Step(s.at_percent, s.action)) for s in budget.spec.ladder),
    )


def _seconds(look: Outlook, rate: Decimal, above: list[int]) -> int | None:
    """Until the next rung, in whole seconds; None: at this rate it is never reached.

    What is committed falls as the period goes by, and what is spent grows: both lines are straight.
    """
    if not above:
        return None
    part = Decimal(min(above)) / 100
    gains = rate - part * look.committed_per_hour
    if gains <= 0:
        return None
    return math.ceil(3600 * (part * (look.ceiling - look.committed) - look.spent - look.in_flight) / gains) + 1


@dataclass(frozen=True, slots=True)
class _Effect:
    """What holds from a rung on.

    Attributes:
        after: the namespace, with the replicas that are kept then.
        per_hour, before: what it costs, and cost until then, in `currency`.
        mixes: of a downgrade, class -> tier -> percent. below: classes whose floor gives way.
        passes, wanted: as in `Step`. exempt: classes that are left alone. resets: when the period ends, in words.
    """

    after: Situation
    per_hour: Decimal
    before: Decimal
    currency: str
    mixes: Mapping[str, Mapping[str, int]]
    below: tuple[str, ...]
    passes: float | None
    wanted: float
    exempt: tuple[str, ...]
    resets: str

    def words(self, action: LadderAction) -> str:
        """What an action does."""
        spared = f"; exempt: {', '.join(self.exempt)}" if self.exempt else ""
        if action is LadderAction.NOTIFY:
            return "says so: event, condition, metrics"
        if action is LadderAction.DOWNGRADE:
            if self.per_hour >= self.before:
                return f"the cheapest mix is in force already{spared}"
            mixes = "; ".join(
                f"{name}: {', '.join(f'{tier} {percent}%' for tier, percent in mix.items())}"
                for name, mix in self.mixes.items()
            )
            below = f"; below the floor: {', '.join(self.below)}" if self.below else ""
            return f"{self._cost()}; {mixes}{below}{spared}"
        if action is LadderAction.THROTTLE:
            if self.passes is None:
                return f"holds nothing back: what is left pays for all requests{spared}"
            return f"{self.passes:.3g} of {self.wanted:g} requests/s pass; {self._cost()}{spared}"
        return f"{self.wanted:g} requests/s get 429 until {self.resets}; {self._cost()}{spared}"

    def _cost(self) -> str:
        was = f"{self.before:,.2f} -> " if self.before != self.per_hour else "still "
        return f"{was}{self.per_hour:,.2f} {self.currency} per hour"


def _effect(here: Situation, standing: Standing, loads: Loads, rate: Decimal) -> _Effect:
    """What the rung that holds makes of the namespace, and of its cost."""
    budget = standing.budget
    hold = enforcement.held(here, (standing,))
    bound = replace(here, hold=hold)
    touched = [view.key for view in here.classes if standing.touches(view.key)]
    wanted = sum(loads[key].mean for key in touched if key in loads)
    passes: float | None = None
    after = rate
    mixes: dict[str, dict[str, int]] = {}
    below: tuple[str, ...] = ()
    top = max(step.action for step in standing.steps)
    if top > LadderAction.NOTIFY:
        decision = decide.decide(bound)
        then = _then(here, decision)
        cost = _cost(replace(then, hold=hold), budget, decision, loads)
        if cost < rate:
            after, here = cost, then
        mixes, below = _mixes(bound, decision)
        if top is LadderAction.DENY:
            passes = 0.0
        elif top is LadderAction.THROTTLE:
            decided, _ = enforcement.decide(replace(here, hold=hold), standing, decision)
            allowed = decided.requests_per_second if decided is not None else None
            if allowed is not None and float(allowed) < wanted:
                passes = float(allowed)
                evenly = standing.seen.committed_per_hour + standing.seen.per_hour(standing.stop_percent)
                after = min(after, evenly)
    return _Effect(
        after=here,
        per_hour=after,
        before=rate,
        currency=budget.spec.currency,
        mixes=mixes,
        below=below,
        passes=passes,
        wanted=wanted,
        exempt=tuple(f"{view.key[1]}/{view.key[2]}" for view in here.classes if not standing.touches(view.key)),
        resets=standing.account.end.astimezone(ZoneInfo(budget.spec.time_zone)).strftime("%Y-%m-%d %H:%M"),
    )


def _mixes(bound: Situation, decision: Decision) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Percent by class and tier that a downgrade wants, and the classes whose floor gives way."""
    for found in decision.downgrade[:1]:
        mixes = {
            f"{key[1]}/{key[2]}": {
                tier: round(100 * share) for tier, share in found.shares[key].items() if round(100 * share)
            }
            for key in (view.key for view in bound.classes)
            if key in bound.hold.downgraded and key in found.shares
        }
        return mixes, tuple(sorted(entry.subject for entry in found.relaxed if entry.kind == "QualityFloor"))
    return {}, ()


def _then(here: Situation, decision: Decision) -> Situation:
    """With the replicas that a decision comes to, where the loop sets them."""
    found = decision.downgrade[0] if decision.downgrade else decision.solution
    counts = {name: count for name, count in found.replicas.items() if scaling.managed(here, name)} if found else {}
    tiers = {
        name: replace(view, planned=counts[name], existing=counts[name], ready=counts[name]) if name in counts else view
        for name, view in here.tiers.items()
    }
    return replace(here, tiers=tiers)


def _cost(bound: Situation, budget: NamespaceBudget, decision: Decision, loads: Loads) -> Decimal:
    """Cost per hour under the hold, in the budget's currency: replicas, and tokens of the mean demand."""
    found = decision.downgrade[0] if decision.downgrade else decision.solution
    total = Decimal(0)
    for name, view in sorted(bound.tiers.items()):
        if tier_status.currency(view) != budget.spec.currency:
            continue
        if not view.external:
            total += view.planned * (view.price_per_hour or Decimal(0))
            continue
        for user in bound.users(name):
            load = loads.get(user.key)
            if load is None or user.key in bound.hold.denied:
                continue
            shares = found.shares.get(user.key) if found is not None else None
            share = shares.get(name, 0.0) if shares is not None else user.weights.get(name, 0) / 100
            each = view.cost_per_request(load.prompt, load.completion)
            total += Decimal(str(3600 * load.mean * share * (each or 0.0)))
    return total
