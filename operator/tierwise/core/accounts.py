"""A budget's account in a planning round: from memory or the checkpoint in the status, and what was used since."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tierwise.api.meta import Provenance
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.namespace_budget_status import Checkpoint, PeriodBounds
from tierwise.core import book, capacity, cost, ledger, periods, tier_status
from tierwise.core import budget as calendar
from tierwise.core import kept as kept_accounts
from tierwise.core.book import Line
from tierwise.core.kept import Kept
from tierwise.core.ledger import Account, Entry, TokenPrices, Use
from tierwise.core.situation import Situation, TierView, autoscaler_bounds
from tierwise.core.world import Key, World

CENT = Decimal("0.01")
SET_BACK = timedelta(days=1)
"""A clock that is late by at most this does not begin a period anew that has ended."""


def account(world: World, situation: Situation, budget: NamespaceBudget, known: Account | None) -> Account:
    """The account at this moment: from memory, else as it was kept, else a new one."""
    zone = budget.spec.time_zone
    start, end = calendar.period(budget.spec.period.value, zone, world.now)
    currency = budget.spec.currency
    if known is None:
        known = _restored(world, budget)
    if known is None or known.currency not in {"", currency}:
        # Nothing tells what was spent before, in this currency: counting begins now.
        known = Account(start, end, world.now)
    known = replace(known, currency=currency)
    if world.now < known.start <= world.now + SET_BACK:
        # Who counted before had a clock that was ahead of this one: what has begun goes on.
        start, end = known.start, known.end
    if known.updated > world.now + SET_BACK:
        known = replace(known, updated=world.now)  # by a clock that was wrong
    gap = situation.settings.max_gap_seconds
    uses = _uses(world, situation, known, budget.spec.currency)
    if (known.start, known.end) != (start, end):
        if known.end <= world.now:
            known = ledger.accrue(known, uses, known.end, max_gap_seconds=gap)  # its last minutes
        known = periods.following(known, start, end, zone)
    held = ledger.accrue(known, uses, world.now, max_gap_seconds=gap)
    return replace(held, book=book.tidied(held.book, world.now, zone))


def unread(world: World, budget: NamespaceBudget) -> tuple[datetime, ...]:
    """Until when a budget's account has counted tokens, as held or as a restart finds it, and when its period ended.

    The end is told where it lies in what is still to be read: each side is another period's. Empty: no account.
    """
    held = world.ledger.accounts.get((budget.metadata.namespace, budget.metadata.name)) or _restored(world, budget)
    if held is None:
        return ()
    namespace = budget.metadata.namespace
    moments = [
        entry.counted_until
        for tier, entry in held.entries.items()
        if entry.counted_until is not None and Key(namespace, tier) in world.tiers
    ]
    counted = min(moments, default=held.updated)
    return (counted, held.end) if counted < held.end < world.now else (counted,)


def _restored(world: World, budget: NamespaceBudget) -> Account | None:
    """The account as it was kept: whole, or by the checkpoint in the status where that is newer."""
    kept, bounds = budget.status.checkpoint, budget.status.period
    whole = _whole(world, budget)
    if whole is not None and (kept is None or whole.updated >= kept.time):
        return replace(whole, checkpoint=whole.updated)
    if kept is None or bounds is None:
        return None
    held = _from_checkpoint(budget, kept, bounds)
    if whole is None or whole.start != held.start:
        return replace(held, book=book.filled(book.Book(), totals(held), held.updated))
    # What came after the account was kept whole has no detail.
    return replace(
        held,
        seen=whole.seen,
        book=book.filled(book.settled(whole.book), totals(held), held.updated),
        bound=max(held.bound, whole.bound),
    )


def _whole(world: World, budget: NamespaceBudget) -> Account | None:
    """The account as it was packed; None where it is not there, of another budget, or can not be read."""
    text = world.books.get(Key(budget.metadata.namespace, budget.metadata.name))
    if text is None:
        return None
    try:
        found = kept_accounts.unpack(text)
    except kept_accounts.UnreadableAccount:
        return None  # the status has the sums
    return found.account if found.uid == budget.metadata.uid and found.currency == budget.spec.currency else None


def from_status(body: Mapping[str, Any]) -> tuple[NamespaceBudget, Account] | None:
    """A budget and its account by the checkpoint in its status alone; None where it has none.

    Raises:
        InvalidObject: it is no valid NamespaceBudget.
    """
    budget = NamespaceBudget.parse(body)
    kept, bounds = budget.status.checkpoint, budget.status.period
    if kept is None or bounds is None:
        return None
    held = _from_checkpoint(budget, kept, bounds)
    return budget, replace(held, book=book.filled(book.Book(), totals(held), held.updated))


def kept(budget: NamespaceBudget, held: Account) -> Kept:
    """An account with what tells whose it is."""
    return Kept(
        budget.metadata.name,
        budget.metadata.uid,
        budget.spec.currency,
        budget.spec.time_zone,
        budget.spec.period.value,
        held,
    )


def totals(held: Account) -> dict[str, Line]:
    """What an account says of each tier, without what for."""
    return {
        tier: Line(
            input_tokens=entry.input_tokens - entry.cached_input_tokens,
            cached_input_tokens=entry.cached_input_tokens,
            output_tokens=entry.output_tokens,
            replica_seconds=entry.replica_seconds,
            untold_cost=entry.cost or Decimal(0),
            estimated_tokens_cost=entry.estimated_cost or Decimal(0),
        )
        for tier, entry in held.entries.items()
    }


def _from_checkpoint(budget: NamespaceBudget, kept: Checkpoint, bounds: PeriodBounds) -> Account:
    """A checkpoint's costs are sums; what of them is estimated is known for the whole, and of which tiers."""
    total = sum((entry.cost for entry in kept.entries if entry.cost is not None), Decimal(0))
    measured = min(total, total if budget.status.measured is None else budget.status.measured)
    estimated = total - measured if total - measured > CENT else Decimal(0)
    entries: dict[str, Entry] = {}
    # First where the checkpoint says so, then wherever there is cost left.
    for entry in sorted(kept.entries, key=lambda one: (one.provenance is not Provenance.ESTIMATED, one.tier)):
        part = min(estimated, entry.cost or Decimal(0))
        estimated -= part
        entries[entry.tier] = Entry(
            replica_seconds=entry.replica_seconds or Decimal(0),
            input_tokens=Decimal((entry.input_tokens or 0) + (entry.cached_input_tokens or 0)),
            cached_input_tokens=Decimal(entry.cached_input_tokens or 0),
            output_tokens=Decimal(entry.output_tokens or 0),
            cost=None if entry.cost is None else entry.cost - part,
            estimated_cost=part or None,
            counted_until=kept.tokens_until or kept.time,
            unpriced_requests=Decimal(1) if unpriced(entry.tier) in budget.status.unknown else Decimal(0),
        )
    rung = budget.status.rung
    return Account(
        bounds.start,
        bounds.end,
        kept.time,
        checkpoint=kept.time,
        entries=dict(sorted(entries.items())),
        rung=rung.at_percent if rung is not None else None,
        since=budget.status.since,
        bound=budget.status.bound or Decimal(0),
        crashes=budget.status.gateways_lost or 0,
        currency=budget.status.currency or "",
    )


def _uses(world: World, situation: Situation, known: Account, currency: str) -> list[Use]:
    """What tiers use, those too that are gone: their last replicas, and tokens that were not read yet."""
    uses = [_use(world, situation, view, currency) for view in situation.tiers.values()]
    read = world.signals.usage if world.signals is not None else {}
    for tier, seen in known.seen.items():
        if tier not in situation.tiers:
            reading = read.get((situation.namespace, tier))
            uses.append(
                Use(
                    tier,
                    replicas=None if seen.external else 0,
                    most_replicas=seen.replicas or 0,
                    price_per_hour=seen.price_per_hour,
                    token_prices=seen.token_prices,
                    external=seen.external,
                    reading=reading,
                    gone=True,
                )
            )
    return uses


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
        room=_room(view),
    )


def _room(view: TierView) -> Decimal:
    """Work units/s that its ready replicas may do; what is more than they do is idle."""
    if view.capacity is None:
        return Decimal(0)
    return cost.decimal(view.ready * view.capacity.saturation * capacity.MAX_UTILISATION)


def _most_replicas(world: World, situation: Situation, view: TierView) -> int:
    """Most replicas that can have run while nobody looked: the autoscaler went on between the bounds that it has."""
    found = autoscaler_bounds(world, Key(situation.namespace, view.name))
    inside = view.tier.spec.in_cluster
    if found is not None:
        return found[1]
    return inside.replicas.max if inside is not None else 0


def _most_cost(situation: Situation, view: TierView) -> Decimal | None:
    """Upper bound of a provider's cost per hour while nobody counts: the planned demand, all of it on this tier.

    So too of a tier without weight that others fall back to: nobody sees whether they do. What is copied comes on top.
    """
    copied = [
        (one, one.spec.shadow.percent / 100)
        for one in situation.classes
        if one.spec.shadow is not None and one.spec.shadow.tier == view.name
    ]
    asked = [*copied, *((user, 1) for user in situation.reaching(view.name))]
    # A class that nobody has called yet tells nothing of the others.
    known = [(one.demand, share) for one, share in asked if one.demand is not None]
    if asked and not known:
        return None
    total = Decimal(0)
    for demand, share in known:
        each = view.cost_per_request(*demand.tokens_on(view.name))
        if each is None:
            return None
        total += cost.decimal(3600 * demand.ahead * share * each)
    return total


def unpriced(tier: str) -> str:
    """How a status says that something a tier used has no price, or no usage."""
    return f"tier {tier}: no price in this currency, or no usage, for what it used"
