"""What a run is scored by. Losses and attainments are percent; costs are per hour."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierwise.economics.scenarios import Scenario
from tierwise.simulate.run import Record

REVERSAL_SECONDS = 1800.0
"""A change back within this time is a reversal."""


@dataclass(frozen=True, slots=True)
class Score:
    """One run in figures.

    Attributes:
        usd_per_hour: replicas, starting and idle ones included, and tokens.
        attainment, worst: percent of requests within their objective, of all and of the worst class.
        loss, worst_loss: mean score below all-large's, percent of it, of all requests and of the worst class.
        class_attainment, class_loss: by class.
        replica_changes: replicas asked for or given up, per hour. weight_changes: slots with one, per hour.
        reversals: per day.
    """

    usd_per_hour: float
    attainment: float
    worst: float
    loss: float
    worst_loss: float
    class_attainment: Mapping[str, float]
    class_loss: Mapping[str, float]
    replica_changes: float
    weight_changes: float
    reversals: float


def score(scenario: Scenario, record: Record) -> Score:
    """A record in figures."""
    total = sum(sum(values) for values in record.requests.values())
    attainment, loss = {}, {}
    had = best = 0.0
    for each in scenario.classes:
        count = sum(record.requests[each.name])
        large = each.quality[scenario.reference]
        got = sum(record.quality[each.name])
        had, best = had + got, best + large * count
        attainment[each.name] = 100 * sum(record.kept[each.name]) / count if count else 100.0
        loss[each.name] = 100 * (1 - got / (large * count)) if count and large else 0.0
    hours = record.hours or 1.0
    moves = [_totals(record.desired[name]) for name in record.desired]
    weights = sum(1 for before, after in itertools.pairwise(record.weights) if before != after)
    return Score(
        usd_per_hour=sum(record.cost) / hours,
        attainment=100 * sum(sum(values) for values in record.kept.values()) / total if total else 100.0,
        worst=min(attainment.values(), default=100.0),
        loss=100 * (1 - had / best) if best else 0.0,
        worst_loss=max(loss.values(), default=0.0),
        class_attainment=attainment,
        class_loss=loss,
        replica_changes=sum(abs(change) for changes in moves for _, change in changes) / hours,
        weight_changes=weights / hours,
        reversals=24 * sum(_reversals(changes, record.seconds) for changes in moves) / hours,
    )


def _totals(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(slot, change) wherever a number of replicas changes."""
    pairs = enumerate(itertools.pairwise(counts), start=1)
    return [(at, after - before) for at, (before, after) in pairs if after != before]


def _reversals(changes: Sequence[tuple[int, int]], seconds: float) -> int:
    return sum(
        1
        for (before, one), (after, other) in itertools.pairwise(changes)
        if one * other < 0 and (after - before) * seconds <= REVERSAL_SECONDS
    )


def attainment(record: Record, first: int, last: int) -> float:
    """Percent of the requests of some slots that were within their objective."""
    total = sum(sum(values[first:last]) for values in record.requests.values())
    return 100 * sum(sum(values[first:last]) for values in record.kept.values()) / total if total else 100.0


def misrouted(scenario: Scenario, record: Record) -> float:
    """Requests that went to a tier which is none of their class's, or not cleared for it: nothing may."""
    inside = {tier.name for tier in scenario.tiers if tier.params is not None}
    allowed = {
        each.name: set(each.quality) & inside if each.name in scenario.sensitive else set(each.quality)
        for each in scenario.classes
    }
    return sum(
        record.requests[name][at] * share / (sum(shares.values()) or 1.0)
        for at, weights in enumerate(record.weights)
        for name, shares in weights.items()
        for tier, share in shares.items()
        if tier not in allowed.get(name, set())
    )
