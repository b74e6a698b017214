"""Budgets in a planning round: what was spent since the last one, and what the status says about it."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from tierwise.api.meta import Provenance
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.namespace_budget_status import (
    Checkpoint,
    LedgerEntry,
    NamespaceBudgetStatus,
    PeriodBounds,
    RungStatus,
)
from tierwise.core import budget as calendar
from tierwise.core import conditions, cost, ledger, tier_status
from tierwise.core.conditions import Finding
from tierwise.core.ledger import Account, Entry, TokenPrices, Use
from tierwise.core.situation import Situation, TierView, autoscaler_bounds
from tierwise.core.world import Key, World

CENT = Decimal("0.01")
MICRO = Decimal("0.000001")


def account(world: World, situation: Situation, budget: NamespaceBudget, known: Account | None) -> Account:
    """The account at this moment: from memory, else from the checkpoint in the status, else a new one."""
    start, end = calendar.period(budget.spec.period.value, budget.spec.time_zone, world.now)
    if known is None:
        known = _restored(budget)
    if known is None:
        # Nothing tells what was spent before: counting begins now.
        known = Account(start, end, world.now)
    if (known.start, known.end) != (start, end):
        known = _next_period(known, start, end)
    uses = [_use(world, situation, view, budget.spec.currency) for view in situation.tiers.values()]
    return ledger.accrue(known, uses, world.now, max_gap_seconds=situation.settings.max_gap_seconds)


def _next_period(known: Account, start: datetime, end: datetime) -> Account:
    """The account of another period: the calendar went on, or somebody changed the budget's period or time zone."""
    if known.end > start and known.start >= start:
        # A longer period around the old one: what is known of it is kept.
        return replace(known, start=start, end=end, checkpoint=None, rung=None, since=None)
    # All since the period's start is this period's; what nobody observed of it is a gap, bounded from above.
    return Account(start, end, start)


def _restored(budget: NamespaceBudget) -> Account | None:
    """The account that the checkpoint in the status kept; None when there is none."""
    kept, bounds = budget.status.checkpoint, budget.status.period
    if kept is None or bounds is None:
        return None
    # A checkpoint's costs are sums: what of them is measured is known for the whole only.
    total = sum((entry.cost for entry in kept.entries if entry.cost is not None), Decimal(0))
    measured = min(total, total if budget.status.measured is None else budget.status.measured)
    estimated = total - measured if total - measured > CENT else Decimal(0)
    entries = {
        entry.tier: Entry(
            replica_seconds=entry.replica_seconds or Decimal(0),
            input_tokens=Decimal((entry.input_tokens or 0) + (entry.cached_input_tokens or 0)),
            cached_input_tokens=Decimal(entry.cached_input_tokens or 0),
            output_tokens=Decimal(entry.output_tokens or 0),
            cost=entry.cost,
            counted_until=kept.tokens_until or kept.time,
            unpriced_requests=Decimal(1) if _unpriced(entry.tier) in budget.status.unknown else Decimal(0),
        )
        for entry in kept.entries
    }
    rung = budget.status.rung
    return Account(
        bounds.start,
        bounds.end,
        kept.time,
        checkpoint=kept.time,
        entries=entries,
        rung=rung.at_percent if rung is not None else None,
        since=budget.status.since,
        before=(-estimated, estimated),
    )


def _use(world: World, situation: Situation, view: TierView, currency: str) -> Use:
    outside = view.tier.spec.external
    same = tier_status.currency(view) == currency
    reading = world.signals.usage.get((situation.namespace, view.name)) if world.signals is not None else None
    if outside is not None:
        price = outside.price if same else None
        return Use(
            view.name,
            external=True,
            token_prices=TokenPrices(
                price.input_per_million_tokens,
                # Without a price of its own, cached input costs what input does: never less than the bill.
                price.input_per_million_tokens
                if price.cached_input_per_million_tokens is None
                else price.cached_input_per_million_tokens,
                price.output_per_million_tokens,
            )
            if price is not None
            else None,
            reading=reading,
            most_cost_per_hour=_most_cost(situation, view) if price is not None else None,
        )
    return Use(
        view.name,
        replicas=view.existing,
        most_replicas=max(view.existing, _most_replicas(world, situation, view)),
        price_per_hour=view.price_per_hour if same else None,
        reading=reading,
    )


def _most_replicas(world: World, situation: Situation, view: TierView) -> int:
    """Most replicas that can have run while nobody looked: the autoscaler went on between the bounds that it has."""
    found = autoscaler_bounds(world, Key(situation.namespace, view.name))
    inside = view.tier.spec.in_cluster
    if found is not None:
        return found[1]
    return inside.replicas.max if inside is not None else 0


def _most_cost(situation: Situation, view: TierView) -> Decimal | None:
    """Upper bound of a provider's cost per hour while nobody counts: the planned demand, all of it on this tier.

    What is copied to the tier comes on top.
    """
    total = Decimal(0)
    for one in situation.classes:
        copied = one.spec.shadow
        if copied is None or copied.tier != view.name:
            continue
        each = view.cost_per_request(*one.demand.tokens_on(view.name)) if one.demand is not None else None
        if each is None or one.demand is None:
            return None
        total += cost.decimal(3600 * one.demand.ahead * copied.percent / 100 * each)
    for user in situation.users(view.name):
        if user.weights.get(view.name, 0) <= 0:
            continue
        each = view.cost_per_request(*user.demand.tokens_on(view.name)) if user.demand is not None else None
        if each is None or user.demand is None:
            return None
        total += cost.decimal(3600 * user.demand.ahead * each)
    return total


def climbed(budget: NamespaceBudget, held: Account, now: datetime) -> Account:
    """The account with the rung that its spend has reached."""
    percent = 100 * ledger.spend(held).total / budget.spec.ceiling
    steps = [step.at_percent for step in budget.spec.ladder]
    reached = calendar.rung(percent, steps, held.rung)
    if reached == held.rung:
        return held
    return replace(held, rung=reached, since=now.replace(microsecond=0) if reached is not None else None)


def status(
    world: World, situation: Situation, budget: NamespaceBudget, held: Account
) -> tuple[NamespaceBudgetStatus, Account]:
    """The status that a budget should have now, and the account, which knows when it was written.

    Figures are written at most every five minutes, and when the rung, the period or the spec changes.
    """
    before, generation = budget.status, budget.metadata.generation
    bounds = PeriodBounds(start=held.start, end=held.end)
    found = findings(world, situation, budget, held)
    rung = next((step for step in budget.spec.ladder if step.at_percent == held.rung), None)
    shown = before.rung.at_percent if before.rung is not None else None
    age = (world.now - held.checkpoint).total_seconds() if held.checkpoint is not None else None
    due = (
        age is None
        or age >= calendar.CHECKPOINT_SECONDS
        or before.period != bounds
        or before.observed_generation != generation
        or shown != held.rung
    )
    settled = conditions.settle(found, before.conditions, generation=generation, now=world.now)
    if not due:
        return before.model_copy(update={"conditions": settled}), held
    entries = tuple(_entry(name, entry) for name, entry in sorted(held.entries.items()))
    spent = ledger.spend(held)
    if (
        before.checkpoint is not None
        and before.checkpoint.entries == entries
        and before.spent == _cents(spent.total)
        and _says(before, bounds, held, generation)
    ):
        # Nothing was spent: the old checkpoint still says all.
        return before.model_copy(update={"conditions": settled}), replace(held, checkpoint=world.now)
    ahead = calendar.forecast(
        spent.total,
        start=max(held.start, budget.metadata.creation_timestamp or held.start),
        end=held.end,
        now=world.now,
        cost_per_hour=_rate(situation, budget),
    )
    written = NamespaceBudgetStatus(
        observed_generation=generation,
        conditions=settled,
        period=bounds,
        spent=_cents(spent.total),
        measured=_cents(spent.counted),
        estimated=_cents(spent.estimated),
        forecast=_cents(ahead.expected) if ahead is not None else None,
        forecast_low=_cents(ahead.low) if ahead is not None else None,
        forecast_high=_cents(ahead.high) if ahead is not None else None,
        remaining=_cents(budget.spec.ceiling - spent.total),
        currency=budget.spec.currency,
        rung=RungStatus(at_percent=rung.at_percent, action=rung.action) if rung is not None else None,
        since=held.since,
        unknown=_unknown(held),
        checkpoint=Checkpoint(
            time=world.now.replace(microsecond=0), tokens_until=_tokens_until(held, world.now), entries=entries
        ),
    )
    return written, replace(held, checkpoint=world.now)


def _says(before: NamespaceBudgetStatus, bounds: PeriodBounds, held: Account, generation: int) -> bool:
    shown = before.rung.at_percent if before.rung is not None else None
    return before.period == bounds and before.observed_generation == generation and shown == held.rung


def _tokens_until(held: Account, now: datetime) -> datetime | None:
    """Until when tokens are counted, in whole seconds, never before the newest sample that was counted."""
    moments = [entry.counted_until for entry in held.entries.values() if entry.counted_until is not None]
    if not moments:
        return None
    until = min(moments)
    if until.microsecond:
        until = until.replace(microsecond=0) + timedelta(seconds=1)
    return until if until < now.replace(microsecond=0) else None


def findings(world: World, situation: Situation, budget: NamespaceBudget, held: Account) -> tuple[Finding, ...]:
    """Ready, and SpendUnknown where something has no price or no usage."""
    invalid = world.invalid.get(("NamespaceBudget", Key(budget.metadata.namespace, budget.metadata.name)))
    if invalid is not None:
        return conditions.invalid(str(invalid), held=True)
    found = [conditions.ready("Counting", "spend is counted")]
    missing = _unknown(held)
    if missing:
        found.append(
            Finding(
                conditions.SPEND_UNKNOWN,
                True,
                "PriceOrUsageUnknown",
                f"not in the sum: {'; '.join(missing)}. Set spec.*.price in the budget's currency "
                f"({budget.spec.currency})",
            )
        )
    elif _uncounted(world, situation, budget):
        found.append(
            Finding(
                conditions.SPEND_UNKNOWN,
                True,
                "UsageNotRead",
                "tokens at providers are not counted while Prometheus does not answer; they are when it is back",
            )
        )
    return tuple(found)


def _uncounted(world: World, situation: Situation, budget: NamespaceBudget) -> bool:
    """Whether tokens are paid for that nobody reads; the first answer of Prometheus is given its time."""
    if not any(view.external for view in situation.tiers.values()):
        return False
    signals, memory = world.signals, world.memory
    answered = signals.time if signals is not None and not signals.error else memory.signals_time
    newest = answered or memory.started
    if newest is not None and (world.now - newest).total_seconds() > situation.settings.max_age_seconds:
        return True
    told = any(c.type == conditions.SPEND_UNKNOWN and c.reason == "UsageNotRead" for c in budget.status.conditions)
    return told and answered is None


def _unknown(held: Account) -> tuple[str, ...]:
    return tuple(_unpriced(name) for name in ledger.spend(held).unknown)[:64]


def _unpriced(tier: str) -> str:
    return f"tier {tier}: no price in this currency, or no usage, for what it used"


def _rate(situation: Situation, budget: NamespaceBudget) -> Decimal | None:
    """Cost per hour of the namespace now; None when a part of it is unknown."""
    total = Decimal(0)
    for view in situation.tiers.values():
        per_hour = tier_status.tier_cost(situation, view).per_hour
        if per_hour is None or tier_status.currency(view) != budget.spec.currency:
            return None
        total += per_hour
    return total


def _cents(value: Decimal) -> Decimal:
    return value.quantize(CENT)


def _entry(name: str, entry: Entry) -> LedgerEntry:
    cost: Decimal | None = None
    if entry.cost is not None or entry.estimated_cost is not None:
        cost = ((entry.cost or Decimal(0)) + (entry.estimated_cost or Decimal(0))).quantize(MICRO)
    estimated = bool(entry.estimated_cost) or bool(entry.estimated_replica_seconds)
    return LedgerEntry(
        tier=name,
        replica_seconds=(entry.replica_seconds + entry.estimated_replica_seconds).quantize(Decimal("0.001")) or None,
        input_tokens=int(entry.input_tokens - entry.cached_input_tokens) or None,
        cached_input_tokens=int(entry.cached_input_tokens) or None,
        output_tokens=int(entry.output_tokens) or None,
        cost=cost,
        provenance=Provenance.ESTIMATED if estimated else Provenance.MEASURED,
    )


def notice(budget: NamespaceBudget, before: Account | None, held: Account) -> tuple[str, str] | None:
    """Reason and note of the event for a rung that was just reached; None when there is none."""
    previous = before.rung if before is not None else None
    if held.rung is None or held.rung <= (previous or -1):
        return None
    if before is None and budget.status.rung is not None and budget.status.rung.at_percent == held.rung:
        return None
    step = next(step for step in budget.spec.ladder if step.at_percent == held.rung)
    spent = ledger.spend(held)
    text = (
        f"spent {_cents(spent.total)} of {budget.spec.ceiling} {budget.spec.currency} "
        f"({_cents(spent.counted)} measured, {_cents(spent.estimated)} estimated) in the period until "
        f"{held.end:%Y-%m-%dT%H:%M:%SZ}: {held.rung}% is reached"
    )
    if step.action.value != "Notify":
        text += f"; action {step.action.value} is recorded, this version only notifies"
    return "CeilingRung", text
