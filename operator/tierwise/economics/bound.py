"""The offline bound: a linear programme over all slots at once, with perfect knowledge, and its integer replay.

Variables per slot: replicas of each tier (fractional), replicas that start, and the share of each class on each tier.
Cost: replicas, starting ones for their whole cold start (those of the first slot are there already), and tokens. A
tier's load fits its replicas at the utilisation at which every class keeps its objective. A class's floor holds for the
mean over all of its requests, so that a slot may lie below it and another above. `burst` takes the busiest ten seconds
of every class at once as the load of a slot: that schedule keeps every objective. The integer replay rounds its
replicas up and keeps its shares.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from tierwise.economics.loads import Loads, Pair, loads
from tierwise.economics.scenarios import Scenario
from tierwise.errors import TierwiseError
from tierwise.simulate.traces import Floats

TIME_LIMIT_SECONDS = 900.0
INFINITE = highspy.kHighsInf


class BoundError(TierwiseError):
    """The programme has no solution, or none was found in time."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A solved programme.

    Attributes:
        usd_per_hour: its cost. loss: of the worst class, percent of all-large's score, where a ceiling was given.
        replicas: tier -> per slot. shares: (class, tier) -> per slot.
        tokens_usd_per_hour: of which tokens.
    """

    usd_per_hour: float
    loss: float | None
    replicas: Mapping[str, Floats]
    shares: Mapping[Pair, Floats]
    tokens_usd_per_hour: float


class _Programme:
    """Columns and rows of one programme, as arrays."""

    def __init__(self) -> None:
        self.cost: list[Floats] = []
        self.upper: list[Floats] = []
        self.columns = 0
        self.low: list[Floats] = []
        self.high: list[Floats] = []
        self.rows = 0
        self.entries: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []

    def block(self, cost: Floats, upper: float = INFINITE) -> NDArray[np.int64]:
        """One column per slot; their numbers."""
        self.cost.append(cost)
        self.upper.append(np.full(len(cost), upper))
        first = self.columns
        self.columns += len(cost)
        return np.arange(first, self.columns)

    def each(self, terms: list[tuple[NDArray[np.int64], Floats]], low: float, high: float) -> None:
        """One row per entry of the terms' arrays."""
        count = len(terms[0][0])
        rows = np.arange(self.rows, self.rows + count)
        self.rows += count
        self.low.append(np.full(count, low))
        self.high.append(np.full(count, high))
        self.entries += [(rows, columns, values) for columns, values in terms]

    def total(self, terms: list[tuple[NDArray[np.int64], Floats]], low: float, high: float) -> None:
        """One row that sums over all entries."""
        self.low.append(np.array([low]))
        self.high.append(np.array([high]))
        self.entries += [(np.full(len(columns), self.rows), columns, values) for columns, values in terms]
        self.rows += 1

    def solve(self, time_limit_seconds: float) -> Floats:
        """Values of all columns.

        Raises:
            BoundError: no optimum.
        """
        rows = np.concatenate([entry[0] for entry in self.entries])
        columns = np.concatenate([entry[1] for entry in self.entries])
        values = np.concatenate([entry[2] for entry in self.entries])
        order = np.lexsort((columns, rows))
        starts = np.searchsorted(rows[order], np.arange(self.rows + 1))
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self.columns, self.rows
        model.col_cost_ = np.concatenate(self.cost)
        model.col_lower_ = np.zeros(self.columns)
        model.col_upper_ = np.concatenate(self.upper)
        model.row_lower_, model.row_upper_ = np.concatenate(self.low), np.concatenate(self.high)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_, model.a_matrix_.index_ = starts.astype(np.int32), columns[order].astype(np.int32)
        model.a_matrix_.value_ = values[order]
        solver = highspy._core._Highs()  # noqa: SLF001 - as in core.milp: the wrapper prints a banner
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("time_limit", time_limit_seconds)
        solver.passModel(model)
        solver.run()
        status = solver.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise BoundError(f"the offline programme ended {solver.modelStatusToString(status)}")
        return np.array(solver.getSolution().col_value)


def schedule(
    scenario: Scenario,
    *,
    burst: bool = False,
    each_slot: bool = False,
    ceiling: float | None = None,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    known: Loads | None = None,
) -> Schedule:
    """The cheapest schedule that keeps every floor; with a ceiling, the one of the least worst-class loss within it.

    Args:
        scenario: with perfect knowledge.
        burst: whether the load of a slot is that of its busiest ten seconds.
        each_slot: whether floors hold in every slot, as the loop keeps them, instead of on the whole.
        ceiling: USD/h on average.
        time_limit_seconds: for the solver.
        known: the scenario's arrays, where they are made already.

    Raises:
        BoundError: nothing fits, or not in time.
    """
    have = known or loads(scenario)
    count, hours = have.slots, have.slots * have.slot_seconds / 3600
    built = _Programme()
    free = ceiling is None
    spend: list[tuple[NDArray[np.int64], Floats]] = []
    replicas: dict[str, NDArray[np.int64]] = {}
    shares: dict[Pair, NDArray[np.int64]] = {}
    each_hour = have.slot_seconds / 3600 / hours

    def priced(prices: Floats, upper: float = INFINITE) -> NDArray[np.int64]:
        columns = built.block(prices if free else np.zeros(len(prices)), upper)
        spend.append((columns, prices))
        return columns

    for tier in scenario.tiers:
        if tier.name not in have.limits:
            continue
        replicas[tier.name] = priced(np.full(count, tier.price_per_hour * each_hour))
        if count > 1 and tier.startup_seconds > 0:
            price = tier.price_per_hour * tier.startup_seconds / 3600 / hours
            started = priced(np.full(count - 1, price))
            ones = np.ones(count - 1)
            now, before = replicas[tier.name][1:], replicas[tier.name][:-1]
            built.each([(now, ones), (before, -ones), (started, -ones)], -INFINITE, 0.0)
    ones = np.ones(count)
    for each in scenario.classes:
        names = [
            t.name for t in scenario.tiers if (each.name, t.name) in have.mean or (each.name, t.name) in have.money
        ]
        if not names:
            raise BoundError(f"{scenario.name}: no tier keeps the objective of {each.name}")
        for name in names:
            pair = each.name, name
            shares[pair] = priced(have.money[pair] * each_hour if pair in have.money else np.zeros(count), 1.0)
        built.each([(shares[each.name, name], ones) for name in names], 1.0, 1.0)
    filled = have.burst if burst else have.mean
    for name, columns in replicas.items():
        users = [(shares[pair], filled[pair]) for pair in shares if pair[1] == name and pair in filled]
        built.each([*users, (columns, -ones)], -INFINITE, 0.0)
    worst = built.block(np.array([1.0])) if ceiling is not None else None
    for each in scenario.classes:
        large = each.quality[scenario.reference]
        terms = [
            (shares[pair], have.weight[each.name] * each.quality[pair[1]]) for pair in shares if pair[0] == each.name
        ]
        if each_slot:
            scores = [(shares[pair], each.quality[pair[1]] * ones) for pair in shares if pair[0] == each.name]
            built.each(scores, scenario.floors[each.name] - 1e-7, INFINITE)
        elif worst is None:
            built.total(terms, scenario.floors[each.name] - 1e-7, INFINITE)
        else:
            built.total([*terms, (worst, np.array([large]))], large, INFINITE)
    if ceiling is not None:
        built.total(spend, -INFINITE, ceiling)
    values = built.solve(time_limit_seconds)
    tokens = sum(float(values[shares[pair]] @ have.money[pair]) * each_hour for pair in shares if pair in have.money)
    return Schedule(
        usd_per_hour=sum(float(values[columns] @ prices) for columns, prices in spend),
        loss=100 * float(values[worst][0]) if worst is not None else None,
        replicas={name: values[columns] for name, columns in replicas.items()},
        shares={pair: values[columns] for pair, columns in shares.items()},
        tokens_usd_per_hour=tokens,
    )


def rounded(found: Schedule) -> dict[str, NDArray[np.int64]]:
    """Replicas of the integer replay: each slot's rounded up."""
    return {name: np.ceil(values - 1e-6).astype(np.int64) for name, values in found.replicas.items()}


def replay_cost(scenario: Scenario, found: Schedule) -> float:
    """USD/h of the integer replay: whole replicas and their starts, and the schedule's tokens."""
    total, hours = found.tokens_usd_per_hour, scenario.hours
    for tier in scenario.tiers:
        counts = rounded(found).get(tier.name)
        if counts is None:
            continue
        starts = float(np.maximum(np.diff(counts), 0).sum())
        total += tier.price_per_hour * (float(counts.mean()) + starts * tier.startup_seconds / 3600 / hours)
    return total
