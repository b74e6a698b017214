"""What a decision really cost: replica-seconds and reported tokens at their prices, over a quiet window after it.

The window begins when replicas that were asked for can be there, and lasts two cool-downs, at least a minute. Another
decision in the namespace ends it. The cost before, which a saving is against, can only be estimated; so the saving is
told only when demand stayed what it was.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from tierwise.core import tier_status
from tierwise.core.decision import Decision
from tierwise.core.memory import LoopMemory, Realising
from tierwise.core.signals import CounterReading
from tierwise.core.situation import Situation, TierView
from tierwise.core.world import World

MIN_WINDOW_SECONDS = 60.0
SAME_DEMAND = 0.1
"""Demand within this share of that of the decision counts as the same."""


def cost_currency(situation: Situation) -> str | None:
    """The one currency of all tiers that some class may use; None when one has no price, or they have several."""
    used = {name for view in situation.classes for name in view.allowed}
    found = {tier_status.currency(situation.tiers[name]) for name in used}
    return next(iter(found)) if len(found) == 1 else None


def follow(world: World, situation: Situation, decision: Decision, memory: LoopMemory) -> LoopMemory:
    """The memory with what this round adds to the window, or with a new one that this round's decision begins."""
    namespace = situation.namespace
    windows = dict(memory.realising)
    held = windows.get(namespace)
    if decision.moved:
        begun = _begin(situation, decision)
        if begun is not None:
            windows[namespace] = begun
        else:
            windows.pop(namespace, None)
    elif held is not None and not held.finished:
        counted = _count(world, situation, held)
        if counted is not None:
            windows[namespace] = counted
        else:
            windows.pop(namespace, None)
    return replace(memory, realising=dict(sorted(windows.items())))


def _begin(situation: Situation, decision: Decision) -> Realising | None:
    money = cost_currency(situation)
    demand = _demand(situation)
    if money is None or demand is None or decision.cost_per_hour is None or decision.stay_cost_per_hour is None:
        return None
    used = [situation.tiers[name] for view in situation.classes for name in view.allowed]
    lead = max((view.startup_seconds for view in used), default=0.0)
    calm = max((2 * view.rules.cooldown_seconds for view in situation.classes), default=0.0)
    start = situation.now + timedelta(seconds=lead)
    return Realising(
        decided=situation.now,
        start=start,
        end=start + timedelta(seconds=max(MIN_WINDOW_SECONDS, calm)),
        before_per_hour=decision.stay_cost_per_hour,
        expected_per_hour=decision.cost_per_hour,
        demand=demand,
        currency=money,
        until=start,
    )


def _demand(situation: Situation) -> float | None:
    """Requests/s of all classes now; None when one is unknown."""
    total = 0.0
    for view in situation.classes:
        if view.demand is None or view.missing is not None:
            return None
        total += view.demand.now
    return total


def _count(world: World, situation: Situation, held: Realising) -> Realising | None:
    """The window with one more round; None when something of it can not be known."""
    now = situation.now
    if now <= held.start:
        return held
    demand = _demand(situation)
    elapsed = (now - held.until).total_seconds()
    if demand is None or elapsed > situation.settings.max_gap_seconds or cost_currency(situation) != held.currency:
        return None
    cost = held.cost
    for name, view in sorted(situation.tiers.items()):
        price = view.price_per_hour
        if price is not None:
            cost += elapsed / 3600 * float(price) * view.existing
        reading = world.signals.usage.get((situation.namespace, name)) if world.signals is not None else None
        if view.external and reading is not None:
            cost += _tokens(view, reading, held.start)
    return replace(
        held,
        cost=cost,
        requests=held.requests + demand * elapsed,
        seconds=held.seconds + elapsed,
        until=now,
        finished=now >= held.end,
    )


def _tokens(view: TierView, reading: CounterReading, start: datetime) -> float:
    """Price of what a reading counted after the window's start."""
    outside = view.tier.spec.external
    if outside is None or outside.price is None:
        return 0.0
    price = outside.price
    cached = price.cached_input_per_million_tokens
    span = (reading.until - reading.since).total_seconds()
    inside = (reading.until - max(reading.since, start)).total_seconds()
    share = min(1.0, max(0.0, inside / span)) if span > 0 else 1.0
    kept = min(reading.cached_input_tokens, reading.input_tokens)
    total = (reading.input_tokens - kept) * float(price.input_per_million_tokens)
    total += kept * float(price.input_per_million_tokens if cached is None else cached)
    total += reading.output_tokens * float(price.output_per_million_tokens)
    return share * total / 1e6


def outcome(window: Realising) -> Mapping[str, float]:
    """Figures of a window: cost_per_hour, requests_per_second, seconds; saving_percent only where demand was alike."""
    if window.seconds <= 0:
        return {}
    per_hour = 3600 * window.cost / window.seconds
    demand = window.requests / window.seconds
    found = {"cost_per_hour": per_hour, "requests_per_second": demand, "seconds": window.seconds}
    if window.before_per_hour > 0 and abs(demand - window.demand) <= SAME_DEMAND * window.demand:
        found["saving_percent"] = 100 * (1 - per_hour / window.before_per_hour)
    return found
