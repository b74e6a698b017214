"""The mixed-integer programme of one problem: its columns and rows, and how to read a solution's values.

Shares and whole replicas stand in one programme; what gives way is a column with a penalty. Linear, with tiers planned
for their strictest class, it is what large problems are rounded from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tierwise.core import milp
from tierwise.core.problem import Pair, Problem, Usable, Worth
from tierwise.core.signals import ClassKey

EPSILON_RATE = 1e-3
"""Requests/s: a class with less counts in what is preferred as if it had so much, lest it be noise to the solver."""

_LOSS = 1.0
"""Objective of one point of quality, 0 to 1, of all requests, where the least loss is looked for."""
_OVER = 100.0
"""And of all money that may be spent, once over: it is not."""

_LEVELS = 3
_TIE = 1e-5


@dataclass(frozen=True, slots=True)
class Found:
    """A solution in the problem's terms, before it is judged.

    Attributes:
        replicas: in-cluster tier -> replicas. shares: class -> tier -> share.
        overload: tier -> replicas' worth of load above what is safe. excess: external tier -> above its limits.
        status: the solver's word.
    """

    replicas: Mapping[str, int]
    shares: Mapping[ClassKey, Mapping[str, float]]
    overload: Mapping[str, float]
    excess: Mapping[str, float]
    status: str


@dataclass(frozen=True, slots=True)
class User:
    """A class on a tier: its rate, requests/s, and the column of its share."""

    rate: float
    pair: Pair
    column: int

    @property
    def load(self) -> float:
        """Replicas' worth of load of the whole class on this tier."""
        return self.rate * self.pair.utilisation


class Programme:
    """The programme of one problem, and how to read its values.

    Args:
        problem: whole. classes: those with somewhere to go.
        exact: whole replicas, and the strictest class that is in use binds a tier; else a linear programme.
        within: currency units per hour: least loss at this cost, instead of least cost.
    """

    def __init__(
        self, problem: Problem, classes: tuple[Usable, ...], *, exact: bool = True, within: float | None = None
    ) -> None:
        self.problem = problem
        self.classes = classes
        self.exact = exact
        self.within = within
        self.model = milp.Model()
        self.replicas: dict[str, int] = {}
        self.shares: dict[ClassKey, dict[str, int]] = {}
        self.users: dict[str, list[User]] = {name: [] for name in sorted(problem.tiers)}
        self.room: dict[str, tuple[int, float]] = {}
        """In-cluster tier -> the row of its capacity, and how much of it a replica adds."""
        self.floors: dict[ClassKey, int] = {}
        """Class -> the row of its floor."""
        self._overload: dict[str, int] = {}
        self._excess: dict[str, int] = {}
        self._money: list[tuple[int, float]] = []
        self._penalty = self._dearest()
        self._demand = max(sum(item.load.rate for item in classes), EPSILON_RATE)
        self._tiers()
        for item in classes:
            self._class(item)
        self._capacity()
        self._limits()
        if within is not None:
            # What the floors ask for is worth more than money only as far as money goes.
            over = self.model.column(cost=_OVER * _LOSS / max(within, 1e-9))
            self.model.row([*self._money, (over, -1.0)], upper=within)

    def _dearest(self) -> float:
        """More per replica's worth of load than the dearest way to serve it, or than any loss of quality."""
        if self.within is not None:
            return 20 * _LOSS
        most = max((tier.price_per_hour or 0.0 for tier in self.problem.tiers.values()), default=0.0)
        dearest = 0.0
        for item in self.classes:
            cost = 3600 * max(pair.cost_per_request for pair in item.pairs)
            if item.load.worth is not None:
                scores = [pair.score or 0.0 for pair in item.pairs]
                cost += 3600 * item.load.worth.below * (max(scores) - min(scores))
            loads = [pair.utilisation for pair in item.pairs if pair.utilisation > 0]
            dearest = max(dearest, cost, cost / min(loads) if loads else 0.0)
        return 20 * max(most, dearest, 1e-3)

    def _cost(self, price: float) -> float:
        """What a cost counts in the objective: all, or, where the least loss is looked for, next to nothing."""
        return price if self.within is None else price * _TIE / max(self.within, 1e-9)

    def _tiers(self) -> None:
        for name, tier in sorted(self.problem.tiers.items()):
            if tier.price_per_hour is None:
                self._excess[name] = self.model.column(cost=self._penalty)
                continue
            low, high = tier.min_replicas, max(tier.min_replicas, tier.max_replicas)
            count = self.model.column(
                cost=self._cost(tier.price_per_hour), lower=low, upper=high, integer=self.exact and low < high
            )
            self._money.append((count, tier.price_per_hour))
            self.replicas[name] = count
            self._overload[name] = self.model.column(cost=self._penalty)
            if tier.start_cost > 0 and tier.max_replicas > tier.current_replicas:
                started = self.model.column(cost=self._cost(tier.start_cost))
                self.model.row([(count, 1.0), (started, -1.0)], upper=float(tier.current_replicas))

    def _class(self, item: Usable) -> None:
        rate = item.load.rate
        seen = max(rate, EPSILON_RATE)
        near = self.problem.near.get(item.load.key) if self.exact else None
        columns = self.shares[item.load.key] = {}
        for order, pair in enumerate(item.pairs):
            # Where cost does not decide, the tier that a replica's price makes dearer per request loses, then the
            # later.
            price = self.problem.tiers[pair.tier].price_per_hour or 0.0
            tie = _TIE * (seen * pair.utilisation * price + 1e-3 * order)
            cost = 3600 * pair.cost_per_request
            column = self.model.column(cost=self._cost(seen * cost + tie), lower=pair.min_share, upper=pair.max_share)
            columns[pair.tier] = column
            self._money.append((column, rate * cost))
            self.users[pair.tier].append(User(rate, pair, column))
            if near is not None:
                away = 1e-3 * seen * max(pair.utilisation, 1e-3)
                self.model.near(column, near.get(pair.tier, 0.0), cost=self._cost(away))
        self.model.row([(column, 1.0) for column in columns.values()], lower=1.0, upper=1.0)
        if item.floor is not None:
            quality = [(columns[pair.tier], pair.score or 0.0) for pair in item.pairs]
            if self.within is not None and item.load.yields:
                quality.append((self.model.column(cost=_LOSS * rate / self._demand), 1.0))
            self.floors[item.load.key] = self.model.row(quality, lower=item.floor)
        if item.load.worth is not None:
            self._worth(item, item.load.worth, seen)

    def _worth(self, item: Usable, worth: Worth, rate: float) -> None:
        """What is missing to the floor costs more than what exceeds it brings in: convex, so both are columns."""
        short = self.model.column(cost=self._cost(3600 * rate * worth.below))
        over = self.model.column(cost=self._cost(-3600 * rate * worth.above), upper=1.0)
        quality = [(self.shares[item.load.key][pair.tier], pair.score or 0.0) for pair in item.pairs]
        self.model.row([*quality, (short, 1.0), (over, -1.0)], lower=worth.floor, upper=worth.floor)

    def _capacity(self) -> None:
        """Load on a tier stays within replicas times the utilisation that its strictest class in use allows."""
        for name, count in self.replicas.items():
            users = self.users[name]
            if not users:
                continue
            load = [(user.column, user.load) for user in users]
            load.append((self._overload[name], -1.0))
            limits = sorted({user.pair.limit for user in users})
            most = (limits[-1] if self.exact else limits[0]) * self.problem.headroom
            self.room[name] = self.model.row([*load, (count, -most)], upper=0.0), most
            if not self.exact:
                continue
            tier = self.problem.tiers[name]
            if max(tier.max_replicas, tier.min_replicas) > 0:
                # However little it is: the penalty of a load that is small enough is below a replica's price.
                for user in users:
                    if user.load > 0:
                        self.model.row([(user.column, 1.0), (count, -1.0)], upper=0.0)
            for low, high in _levels(limits):
                allowed = low * self.problem.headroom
                strict = self.model.column(cost=0.0, upper=1.0, integer=True)
                slack = (most - allowed) * max(tier.max_replicas, tier.min_replicas)
                self.model.row([*load, (count, -allowed), (strict, slack)], upper=slack)
                for user in users:
                    if low <= user.pair.limit <= high:
                        self.model.row([(user.column, 1.0), (strict, -1.0)], upper=0.0)

    def _limits(self) -> None:
        for name, excess in self._excess.items():
            tier, users = self.problem.tiers[name], self.users[name]
            if tier.requests_limit is not None:
                terms = [(user.column, user.rate) for user in users]
                self.model.row([*terms, (excess, -1.0)], upper=tier.requests_limit)
            if tier.tokens_limit is not None:
                terms = [(user.column, user.rate * user.pair.tokens) for user in users]
                mean = max((user.pair.tokens for user in users), default=1.0)
                self.model.row([*terms, (excess, -mean)], upper=tier.tokens_limit)

    def read(self, values: tuple[float, ...], status: str) -> Found:
        """The solution in the problem's terms."""
        return Found(
            replicas={name: round(values[column]) for name, column in self.replicas.items()},
            shares=milp.shares(self.shares, values),
            overload={name: values[column] for name, column in self._overload.items() if values[column] > 1e-6},
            excess={name: values[column] for name, column in self._excess.items() if values[column] > 1e-6},
            status=status,
        )


def _levels(limits: list[float]) -> list[tuple[float, float]]:
    """Ranges of the limits below the largest one, at most three: each is planned for at its lowest."""
    strict = limits[:-1]
    if not strict:
        return []
    size = math.ceil(len(strict) / _LEVELS)
    return [(strict[at], strict[min(at + size, len(strict)) - 1]) for at in range(0, len(strict), size)]
