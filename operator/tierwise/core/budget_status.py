"""Budgets in a planning round: what was spent since the last one, and what the status says about it."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal

from tierwise.api.meta import Provenance
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.namespace_budget_status import (
    Checkpoint,
    Enforcement,
    LadderAction,
    LedgerEntry,
    NamespaceBudgetStatus,
    PeriodBounds,
    RungStatus,
)
from tierwise.core import accounts, conditions, ladder, ledger, pace, tier_status
from tierwise.core import budget as calendar
from tierwise.core.conditions import Finding
from tierwise.core.enforcement import Standing
from tierwise.core.ledger import Account, Entry
from tierwise.core.situation import Situation
from tierwise.core.world import Key, World

FORECAST_STAYS = Decimal("0.95")
"""The warning that a forecast passes the ceiling goes when it is so much of the ceiling, and no sooner."""
MICRO = Decimal("0.000001")
MOST_ENTRIES = 128
"""Tiers that a checkpoint lists."""
OTHER = "(other)"


def status(
    world: World, situation: Situation, one: Standing, decided: Enforcement | None
) -> tuple[NamespaceBudgetStatus, Account]:
    """The status that a budget should have now, and the account, which knows when it was written.

    Figures are written at most every five minutes, and when the rung, the period or the spec changes.

    Args:
        world: of this round.
        situation: the budget's namespace in it.
        one: the budget, with the rung that its spend has reached.
        decided: what gateways shall do; None: nothing.
    """
    budget, held = one.budget, one.account
    before, generation = budget.status, budget.metadata.generation
    bounds = PeriodBounds(start=held.start, end=held.end)
    found = findings(world, situation, one)
    rung = next((step for step in budget.spec.ladder if step.at_percent == held.rung), None)
    shown = before.rung.at_percent if before.rung is not None else None
    age = (world.now - held.checkpoint).total_seconds() if held.checkpoint is not None else None
    due = (
        age is None
        or not 0 <= age < calendar.CHECKPOINT_SECONDS  # negative: an operator with a clock that was ahead wrote it
        or before.period != bounds
        or before.observed_generation != generation
        or shown != held.rung
    )
    settled = conditions.settle(found, before.conditions, generation=generation, now=world.now)
    now = {"conditions": settled, "enforcement": decided}
    if not due:
        return before.model_copy(update=now), held
    entries = _entries(held)
    spent = ledger.spend(held)
    if (
        before.checkpoint is not None
        and before.checkpoint.entries == entries
        and before.spent == _cents(spent.total)
        and _says(before, bounds, held, generation)
    ):
        # Nothing was spent: the old checkpoint still says all.
        return before.model_copy(update=now), replace(held, checkpoint=world.now)
    ahead = forecast(world, situation, one)
    written = NamespaceBudgetStatus(
        observed_generation=generation,
        conditions=settled,
        period=bounds,
        spent=_cents(spent.total),
        measured=_cents(spent.counted),
        estimated=_cents(spent.estimated),
        bound=_up(spent.bound),
        gateways_lost=held.crashes,
        forecast=_cents(ahead.expected) if ahead is not None else None,
        forecast_low=_cents(ahead.low) if ahead is not None else None,
        forecast_high=_cents(ahead.high) if ahead is not None else None,
        remaining=_cents(budget.spec.ceiling - spent.total),
        currency=budget.spec.currency,
        rung=RungStatus(at_percent=rung.at_percent, action=rung.action) if rung is not None else None,
        since=held.since,
        enforcement=decided,
        unknown=_unknown(held),
        checkpoint=Checkpoint(
            time=world.now.replace(microsecond=0), tokens_until=_tokens_until(held, world.now), entries=entries
        ),
    )
    return written, replace(held, checkpoint=world.now)


def forecast(world: World, situation: Situation, one: Standing) -> calendar.Forecast | None:
    """Spend to expect at the period's end; None while too little of it has passed."""
    budget, held = one.budget, one.account
    return calendar.forecast(
        ledger.spend(held).total,
        start=max(held.start, budget.metadata.creation_timestamp or held.start),
        end=held.end,
        now=world.now,
        cost_per_hour=_rate(situation, budget),
        ahead=pace.forecast(one.memory.pace, world.now, held.end),
    )


def _says(before: NamespaceBudgetStatus, bounds: PeriodBounds, held: Account, generation: int) -> bool:
    shown = before.rung.at_percent if before.rung is not None else None
    return before.period == bounds and before.observed_generation == generation and shown == held.rung


def _tokens_until(held: Account, now: datetime) -> datetime | None:
    """Until when tokens are counted, in whole seconds, never before the newest sample that was counted."""
    moments = [entry.counted_until for entry in held.entries.values() if entry.counted_until is not None]
    if not moments:
        return None
    # Tiers that are gone are counted no further, all others equally far.
    until = max(moments)
    if until.microsecond:
        until = until.replace(microsecond=0) + timedelta(seconds=1)
    return until if until != now.replace(microsecond=0) else None


def findings(world: World, situation: Situation, one: Standing) -> tuple[Finding, ...]:
    """Ready, SpendUnknown where something has no price or no usage, and what the ladder does."""
    budget, held = one.budget, one.account
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
    elif uncounted(world, situation, budget):
        found.append(
            Finding(
                conditions.SPEND_UNKNOWN,
                True,
                "UsageNotRead",
                "tokens at providers are not counted while Prometheus does not answer; they are when it is back",
            )
        )
    return (*found, *_ladder(one), *_forecast(world, situation, one))


def _forecast(world: World, situation: Situation, one: Standing) -> list[Finding]:
    """A warning before the rung: what is expected passes the ceiling."""
    found = forecast(world, situation, one)
    told = any(c.type == conditions.CEILING_FORECAST for c in one.budget.status.conditions)
    least = one.budget.spec.ceiling * (FORECAST_STAYS if told else 1)
    if found is None or one.does(LadderAction.DENY) or found.expected <= least:
        return []
    text = "spend is expected to pass the ceiling before the period ends, if it goes on as now: see status.forecast"
    return [Finding(conditions.CEILING_FORECAST, True, "AboveCeiling", f"{text} (estimated)")]


def _ladder(one: Standing) -> list[Finding]:
    """What the ladder does, without figures that move."""
    found: list[Finding] = []
    if one.steps:
        step = one.steps[-1]
        text = f"{step.at_percent}% of the ceiling is reached in the period until {one.account.end:%Y-%m-%dT%H:%M:%SZ}"
        found.append(Finding(conditions.CEILING_RUNG, True, step.action.value, f"{text}: {_DOES[step.action]}"))
    if ladder.stops_at(one.budget.spec.ladder) is None:
        text = (
            "no rung of spec.ladder denies: spend may exceed the ceiling. Add a rung with action Deny to make it hold"
        )
        found.append(Finding(conditions.CEILING_SOFT, True, "NoDenyRung", text))
    return found


_DOES = {
    LadderAction.NOTIFY: "requests are answered as before",
    LadderAction.DOWNGRADE: "requests go to cheaper tiers",
    LadderAction.THROTTLE: "requests per second are held to what the rest of the money pays for",
    LadderAction.DENY: "requests get 429",
}


def uncounted(world: World, situation: Situation, budget: NamespaceBudget) -> bool:
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
    return tuple(accounts.unpriced(name) for name in ledger.spend(held).unknown)[:64]


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
    return value.quantize(accounts.CENT)


def _up(value: Decimal) -> Decimal:
    return value.quantize(accounts.CENT, ROUND_UP)


def _entries(held: Account) -> tuple[LedgerEntry, ...]:
    """One per tier that was used; of more than a status may list, the cheapest are one.

    Whoever makes tiers must not be able to stop the count by their number.
    """
    used = {name: entry for name, entry in held.entries.items() if not _unused(entry)}
    by_cost = sorted(used, key=lambda name: (-((used[name].cost or 0) + (used[name].estimated_cost or 0)), name))
    if len(used) > MOST_ENTRIES:
        rest = by_cost[MOST_ENTRIES - 1 :]
        used = {name: entry for name, entry in used.items() if name not in rest} | {
            OTHER: ledger.summed(held.entries[name] for name in rest)
        }
    return tuple(_entry(name, entry) for name, entry in sorted(used.items()))


def _unused(entry: Entry) -> bool:
    return replace(entry, counted_until=None, cost=entry.cost or None, estimated_cost=None) == Entry()


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


def notice(budget: NamespaceBudget, before: Account | None, one: Standing) -> tuple[str, str] | None:
    """Reason and note of the event for a rung that was just reached; None when there is none."""
    held = one.account
    previous = before.rung if before is not None and before.start == held.start else None
    if held.rung is None or held.rung <= (previous or -1):
        return None
    if before is None and budget.status.rung is not None and budget.status.rung.at_percent == held.rung:
        return None
    step = next(step for step in budget.spec.ladder if step.at_percent == held.rung)
    spent, money = ledger.spend(held), budget.spec.currency
    text = (
        f"spent {_cents(spent.total)} of {budget.spec.ceiling} {money} "
        f"({_cents(spent.counted)} measured, {_cents(spent.estimated)} estimated) in the period until "
        f"{held.end:%Y-%m-%dT%H:%M:%SZ}, up to {_cents(one.seen.in_flight)} in flight, "
        f"{_cents(one.seen.committed)} reserved for the least replicas: {held.rung}% is reached: {_DOES[step.action]}"
    )
    return "CeilingRung", text
