"""What a namespace's budgets do in a planning round: to the plan (`held`), and to requests (`decide`).

The rung says which; how much follows from the figures of the round. What gateways were told stands in the budget's
status: after a restart the ladder goes on from there.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from tierwise.api.namespace_budget import LadderRung, NamespaceBudget
from tierwise.api.namespace_budget_status import Enforcement, LadderAction
from tierwise.core import cost, demand, ladder, pace, scaling, tier_status
from tierwise.core.decision import Decision
from tierwise.core.hold import Hold
from tierwise.core.ladder import LadderMemory
from tierwise.core.ledger import Account
from tierwise.core.outlook import Outlook
from tierwise.core.signals import ClassKey
from tierwise.core.situation import ClassView, Situation, TierView

_TRACE = 0.01
"""A smaller share of a class is no reason to name a tier."""


MOST_TIERS = 64
"""Tiers that an enforcement may name: a class that finds none of its own there keeps them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One budget in a round.

    Attributes:
        budget: the object. account: with the rung that holds. seen: its figures. memory: of its ladder.
        blind: nobody sees what is spent.
    """

    budget: NamespaceBudget
    account: Account
    seen: Outlook
    memory: LadderMemory
    blind: bool

    @property
    def steps(self) -> tuple[LadderRung, ...]:
        """The rungs that are reached."""
        return ladder.actions(self.budget.spec.ladder, self.account.rung)

    def does(self, action: LadderAction) -> bool:
        """Whether a rung with this action is reached."""
        return any(step.action is action for step in self.steps)

    def touches(self, key: ClassKey) -> bool:
        """Whether the ladder may do anything to a class."""
        return not any((one.policy, one.class_name) == key[1:] for one in self.budget.spec.exempt)

    @property
    def acts(self) -> bool:
        """Whether a rung is reached that does anything to requests."""
        return any(step.action >= LadderAction.DOWNGRADE for step in self.steps)

    @property
    def relieves(self) -> bool:
        """Whether a saturated tier passes requests on. Not while money is short, nor for a while afterwards."""
        short = self.memory.short
        if short is not None and (self.account.updated - short).total_seconds() < ladder.TIER_SECONDS:
            return False
        return not self.does(LadderAction.THROTTLE)

    @property
    def stop_percent(self) -> int:
        """Up to which percent of the ceiling money may be spent."""
        return ladder.stops_at(self.budget.spec.ladder) or 100


def climbed(
    budget: NamespaceBudget,
    account: Account,
    seen: Outlook,
    memory: LadderMemory,
    *,
    blind: bool,
    present_per_hour: float | None = None,
) -> Standing:
    """The budget with the rung that its spend has reached, and the share of its wishes that can be paid for.

    Args:
        budget: the object.
        account: counted until now.
        seen: its figures.
        memory: of its ladder.
        blind: nobody sees what is spent.
        present_per_hour: what the namespace would cost now without a ceiling; None when not known.
    """
    expected = pace.ahead(memory.pace, account.updated, account.end, present_per_hour)
    left = max(Decimal(0), seen.ceiling * (ladder.stops_at(budget.spec.ladder) or 100) / 100 - seen.spent)
    share = pace.share(memory.pace, left - seen.in_flight, expected, blind=blind)
    memory = replace(
        memory,
        pace=replace(memory.pace, share=share),
        short=account.updated if share < 1 else memory.short,
    )
    steps = [step.at_percent for step in budget.spec.ladder]
    reached = ladder.climb(seen.percent(), steps, account.rung, blind=blind, holding=seen.percent(memory.allowance))
    if reached == account.rung:
        return Standing(budget, account, seen, memory, blind)
    since = account.updated.replace(microsecond=0) if reached is not None else None
    return Standing(
        budget,
        replace(account, rung=reached, since=since),
        seen,
        replace(memory, allowance=seen.in_flight if reached is not None else Decimal(0)),
        blind,
    )


def recalled(budget: NamespaceBudget, account: Account, seen: Outlook) -> LadderMemory:
    """What a ladder remembers that this process has not climbed: after a restart, or of a new budget.

    A rung may have been reached by what was in flight then. How much that was nobody wrote down, but it was enough for
    the rung: so much is taken, as long as the spec is the one that the rung was reached under. Requests that waited
    while tiers were saturated go on waiting for a while.
    """
    told = budget.status.enforcement
    waited = told is not None and told.resets_at == account.end and not told.relief
    memory = LadderMemory(short=account.updated if waited else None)
    if account.rung is None or budget.status.observed_generation != budget.metadata.generation:
        return memory
    enough = account.rung * (seen.ceiling - seen.committed) / 100 - seen.spent
    return replace(memory, allowance=max(Decimal(0), enough))


def held(situation: Situation, standings: Iterable[Standing]) -> Hold:
    """What the budgets ask of the plan."""
    budgets = tuple(standings)
    keys = [view.key for view in situation.classes]

    def touched(found: Iterable[Standing]) -> frozenset[ClassKey]:
        return frozenset(key for one in found for key in keys if one.touches(key))

    denied = touched(one for one in budgets if one.does(LadderAction.DENY))
    below = (one for one in budgets if _below(one))
    return Hold(
        denied=denied,
        downgraded=touched(one for one in budgets if one.does(LadderAction.DOWNGRADE)),
        waiting=touched(one for one in budgets if one.acts and not one.relieves),
        below_floor=touched(below),
        least=_least(situation, budgets, denied),
        most=_most(situation, budgets, denied),
        share=min((one.memory.pace.share for one in budgets if _below(one)), default=1.0),
    )


def _below(one: Standing) -> bool:
    return any(step.below_floor for step in one.steps)


def _least(situation: Situation, budgets: tuple[Standing, ...], denied: frozenset[ClassKey]) -> dict[str, int]:
    """In-cluster tiers whose own minimum a budget takes: all who use them are denied, and it may."""
    takes = [one for one in budgets if one.does(LadderAction.DENY) and one.budget.spec.enforce_replicas]
    return {
        view.name: 0
        for view in situation.tiers.values()
        if takes and not view.external and _idle(situation, view, denied)
    }


def _idle(situation: Situation, view: TierView, denied: frozenset[ClassKey]) -> bool:
    return all(user.key in denied for user in situation.users(view.name))


def _most(situation: Situation, budgets: tuple[Standing, ...], denied: frozenset[ClassKey]) -> dict[str, int]:
    """In-cluster tier -> most replicas that every budget can pay for."""
    found: dict[str, int] = {}
    for view in situation.tiers.values():
        inside = view.tier.spec.in_cluster
        if inside is None:
            continue
        counts = [_affordable(one, view, inside.replicas.min) for one in budgets]
        if denied and _idle(situation, view, denied):
            taken = any(one.does(LadderAction.DENY) and one.budget.spec.enforce_replicas for one in budgets)
            counts.append(0 if taken else inside.replicas.min)
        known = [count for count in counts if count is not None]
        if known and min(known) < inside.replicas.max:
            found[view.name] = min(known)
    return found


def _affordable(one: Standing, view: TierView, least: int) -> int | None:
    """Replicas of a tier that a budget pays for until the period ends: the least, and what is left for more.

    None: no limit. A budget limits them from its throttle on; before, what is in flight ends them in time.
    """
    price = view.price_per_hour
    if not one.does(LadderAction.THROTTLE) or not price or tier_status.currency(view) != one.budget.spec.currency:
        return None
    return least + math.floor(one.seen.per_hour(one.stop_percent) / price)


def decide(situation: Situation, one: Standing, decision: Decision) -> tuple[Enforcement | None, LadderMemory]:
    """What gateways shall do about the namespace's requests, and what the ladder remembers of it."""
    reached = max((step.action for step in one.steps), default=LadderAction.NOTIFY)
    memory = replace(
        one.memory,
        pace=pace.remember(
            one.memory.pace,
            situation.now,
            one.seen.spent,
            # Nobody's requests are no measure of what they cost.
            planned_per_hour=None if situation.hold.denied else decision.cost_per_hour,
            without_per_hour=decision.without_per_hour,
        ),
    )
    if reached is LadderAction.NOTIFY:
        return None, replace(memory, decided=None, rated=None, needed={})
    before = _before(one)
    tiers: tuple[str, ...] = ()
    if one.does(LadderAction.DOWNGRADE):
        needed = () if one.blind and before is not None else _needed(one, decision)
        tiers, since = ladder.kept_tiers(before.tiers if before else (), needed, memory.needed, situation.now)
        memory = replace(memory, needed=since)
    rate: Decimal | None = None
    if reached is LadderAction.THROTTLE:
        rate = _rate(situation, one, decision, before)
        if rate is None:
            reached = LadderAction.DOWNGRADE  # requests cost nothing: nothing to hold back
        if memory.rated is None or before is None or before.requests_per_second != rate:
            memory = replace(memory, rated=situation.now)
    same = before is not None and before.action is reached
    decided = Enforcement(
        action=reached,
        since=before.since if same and before is not None else situation.now.replace(microsecond=0),
        resets_at=one.account.end,
        tiers=tiers[:MOST_TIERS],
        relief=one.relieves,
        requests_per_second=rate,
    )
    return decided, replace(memory, decided=decided)


def _before(one: Standing) -> Enforcement | None:
    """What gateways were last told in this period: from memory, else, after a restart, from the status."""
    shown = one.memory.decided or one.budget.status.enforcement
    return shown if shown is not None and shown.resets_at == one.account.end else None


def _needed(one: Standing, decision: Decision) -> tuple[str, ...]:
    """Tiers of the cheapest mixes of the classes that this budget downgrades."""
    names = {
        tier
        for found in decision.downgrade
        for key, shares in found.shares.items()
        if one.touches(key)
        for tier, share in shares.items()
        if share >= _TRACE
    }
    return tuple(sorted(names))


def _rate(situation: Situation, one: Standing, decision: Decision, before: Enforcement | None) -> Decimal | None:
    """Requests/s that spend what is left evenly; None when a request costs nothing.

    While a throttle holds, demand is what it lets through. If that fits on the least replicas it costs nothing, and
    what waits outside may not: so these are filled, and no more is let in.
    """
    touched = [view for view in situation.classes if one.touches(view.key)]
    exempt = [view for view in situation.classes if not one.touches(view.key)]
    money = one.seen.per_hour(one.stop_percent)
    for view in exempt:
        if view.demand is not None:
            money -= cost.decimal(3600 * view.demand.now * _each(situation, one, view, _mix(view, decision)))
    each = _mean_cost(situation, one, touched, decision)
    if each > 0:
        wanted = ladder.rate(max(Decimal(0), money), cost.decimal(each))
    else:
        free = _free(situation, touched, exempt, decision)
        if before is None or before.requests_per_second is None or free is None:
            return None
        # Nothing is left free: what there is no money for does not get in, and a rate of nothing would deny.
        wanted = ladder.rounded_down(cost.decimal(free)) or before.requests_per_second
    age = (situation.now - one.memory.rated).total_seconds() if one.memory.rated is not None else None
    known = [view.demand.now for view in touched if view.demand is not None and view.missing is None]
    return ladder.paced(
        before.requests_per_second if before is not None else None,
        wanted,
        age_seconds=age,
        admitted=sum(known) if len(known) == len(touched) else None,
        blind=one.blind,
    )


def _mix(view: ClassView, decision: Decision) -> Mapping[str, float]:
    """Where a class's requests go: as the downgrade wants it, else by the weights in force."""
    for found in decision.downgrade[:1]:
        if view.key in found.shares:
            return found.shares[view.key]
    return {name: percent / 100 for name, percent in view.weights.items()}


def _mean_cost(situation: Situation, one: Standing, views: list[ClassView], decision: Decision) -> float:
    """Mean cost of a request of these classes, by their demand; evenly where none is measured."""
    costs = [(_rate_of(view), _each(situation, one, view, _mix(view, decision))) for view in views]
    total = sum(weight for weight, _ in costs)
    if total <= 0:
        return max((each for _, each in costs), default=0.0)
    return sum(weight * each for weight, each in costs) / total


def _free(situation: Situation, views: list[ClassView], exempt: list[ClassView], decision: Decision) -> float | None:
    """Requests/s of classes, at their mixes, that the least replicas carry beside what exempt classes take.

    None where no tier of one's own bounds them, or nothing is known of one.
    """
    total = sum(map(_rate_of, views))
    shares: dict[str, float] = {}
    for view in views:
        part = _rate_of(view) / total if total > 0 else 1 / len(views)
        for name, share in _mix(view, decision).items():
            shares[name] = shares.get(name, 0.0) + part * share
    found = []
    for name, share in shares.items():
        tier = situation.tiers.get(name)
        if tier is None or tier.external or share < _TRACE:
            continue
        if tier.capacity is None:
            return None
        low, _ = scaling.limits(situation, tier)
        taken = sum(_rate_of(view) * _mix(view, decision).get(name, 0.0) for view in exempt)
        safe = tier_status.safe_rate(situation, tier, tier.capacity)
        found.append(max(0.0, low * safe - taken) / share)
    return min(found, default=None)


def _rate_of(view: ClassView) -> float:
    return view.demand.ahead if view.demand is not None else 0.0


def _each(situation: Situation, one: Standing, view: ClassView, mix: Mapping[str, float]) -> float:
    """Cost of one request of a class at a mix, in the budget's currency.

    At a provider its tokens; on a tier of one's own its share of the replicas above the least, since these run anyway.
    """
    total = 0.0
    for name, share in mix.items():
        tier = situation.tiers.get(name)
        if tier is None or share <= 0 or tier_status.currency(tier) != one.budget.spec.currency:
            continue
        tokens = (demand.DEFAULT_PROMPT_TOKENS, demand.DEFAULT_COMPLETION_TOKENS)
        if view.demand is not None:
            tokens = view.demand.tokens_on(name)
        if tier.external:
            total += share * (tier.cost_per_request(*tokens) or 0.0)
        elif tier.capacity is not None and tier.price_per_hour is not None:
            safe = tier_status.safe_rate(situation, tier, tier.capacity)
            low, _ = scaling.limits(situation, tier)
            above = max(0, tier.planned - low) / tier.planned if tier.planned else 1.0
            total += share * above * float(tier.price_per_hour) / 3600 / max(safe, 1e-9)
    return total
