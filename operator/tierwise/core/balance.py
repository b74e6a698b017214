"""The joint choice of weights and replicas: one small mixed-integer programme per namespace.

Weights and replicas are one problem because an idle replica that runs anyway serves for nothing: the average cost of
a token
misprices it. Costs are currency units per hour; rates are per second; shares and utilisations are fractions.

When not everything can hold, constraints give way in this order, and the solution says which did: the cost target,
then the
latency objective (load above the safe utilisation). A quality floor that no allowed mix reaches is replaced by the best
reachable quality, and clearance can not give way: a tier that is not cleared is not in the problem.
"""

import math
from collections.abc import Mapping

from tierwise.core import milp
from tierwise.core.problem import Problem, Relaxed, Solution, Usable, cost_of, usable
from tierwise.core.signals import ClassKey

TIME_LIMIT_SECONDS = 2.0
RELATIVE_GAP = 1e-3
EXACT_PAIRS = 40
"""Up to so many pairs of class and tier the problem is solved to the end; beyond, replicas are rounded."""

_ROUNDING_WORK = 1600
"""Pairs times attempts to take a rounding back: smaller problems can afford more of them."""

_LOSS = 1.0
"""Objective of one point of quality, 0 to 1, of all requests, where the least loss is looked for."""
_OVER = 100.0
"""And of all money that may be spent, once over: it is not."""

_EPSILON_RATE = 1e-3
_LEVELS = 3
_TIE = 1e-5


def solve(
    problem: Problem, *, within: float | None = None, time_limit_seconds: float = TIME_LIMIT_SECONDS
) -> Solution | None:
    """The cheapest mix; None only when the solver found no point in time (the caller then keeps what is in force).

    Args:
        problem: to be solved.
        within: not the cheapest mix but, of those that cost at most so much per hour, the one in which the floors that
            yield are missed least, by the classes' demand.
        time_limit_seconds: for each call of the solver.
    """
    ready = tuple(item for load in problem.classes if (item := usable(load)).pairs)
    if sum(len(item.pairs) for item in ready) > EXACT_PAIRS:
        return _rounded(problem, ready, time_limit_seconds, within)
    built = _Built(problem, ready, within=within)
    outcome = built.model.solve(time_limit_seconds=time_limit_seconds, relative_gap=RELATIVE_GAP)
    if outcome.values is None:
        return None
    return built.read(outcome.values, outcome.status)


def _rounded(
    problem: Problem, classes: tuple[Usable, ...], time_limit_seconds: float, within: float | None = None
) -> Solution | None:
    """A large problem: the linear relaxation, with replicas rounded up.

    The dearest roundings are taken back where that is cheaper. Every tier is planned for its strictest class, used or
    not, so that nothing is whole but the replicas.
    """
    relaxed = _Built(problem, classes, exact=False, within=within)
    outcome = relaxed.model.solve(time_limit_seconds=time_limit_seconds, relative_gap=RELATIVE_GAP)
    if outcome.values is None:
        return None
    exact = {name: outcome.values[column] for name, column in relaxed.replicas.items()}
    counts = {name: math.ceil(value - 1e-6) for name, value in exact.items()}
    best = _with_replicas(problem, classes, counts, time_limit_seconds, within)
    if best is None:
        return None
    waste = sorted(
        (name for name in counts if counts[name] > max(problem.tiers[name].min_replicas, exact[name] + 1e-6)),
        key=lambda name: (-(counts[name] - exact[name]) * (problem.tiers[name].price_per_hour or 0.0), name),
    )
    attempts = max(2, _ROUNDING_WORK // sum(len(item.pairs) for item in classes))
    for name in waste[:attempts]:
        fewer = {**counts, name: counts[name] - 1}
        other = _with_replicas(problem, classes, fewer, time_limit_seconds, within)
        if other is not None and other[0] < best[0]:
            counts, best = fewer, other
    return best[1]


def _with_replicas(
    problem: Problem,
    classes: tuple[Usable, ...],
    counts: Mapping[str, int],
    time_limit_seconds: float,
    within: float | None,
) -> tuple[float, Solution] | None:
    """Objective and solution with these replicas; None when there is none in time."""
    built = _Built(problem, classes, exact=False, counts=counts, within=within)
    outcome = built.model.solve(time_limit_seconds=time_limit_seconds, relative_gap=RELATIVE_GAP)
    if outcome.values is None:
        return None
    return outcome.objective, built.read(outcome.values, f"{outcome.status}, rounded")


class _Built:
    """The programme of one problem, and how to read its values.

    Args:
        problem: whole. classes: those with somewhere to go.
        exact: whole replicas, and the strictest class that is in use binds a tier; else a linear programme.
        counts: replicas to take as given.
        within: currency units per hour: least loss at this cost, instead of least cost.
    """

    def __init__(
        self,
        problem: Problem,
        classes: tuple[Usable, ...],
        *,
        exact: bool = True,
        counts: Mapping[str, int] | None = None,
        within: float | None = None,
    ) -> None:
        self.problem = problem
        self.within = within
        self.money: list[tuple[int, float]] = []
        self.exact = exact
        self.counts = counts
        self.classes = classes
        self.model = milp.Model()
        self.replicas: dict[str, int] = {}
        self.overload: dict[str, int] = {}
        self.excess: dict[str, int] = {}
        self.shares: dict[tuple[ClassKey, str], int] = {}
        self.penalty = self._penalty()
        self.demand = max(sum(item.load.rate for item in classes), _EPSILON_RATE)
        self._tiers()
        self._classes()
        self._capacity()
        self._limits()
        if within is not None:
            # What the floors ask for is worth more than money only as far as money goes.
            over = self.model.column(cost=_OVER * _LOSS / max(within, 1e-9))
            self.model.row([*self.money, (over, -1.0)], upper=within)

    def _paid(self, column: int, price: float) -> int:
        """A column with its cost per unit, currency units per hour."""
        self.money.append((column, price))
        return column

    def _cost(self, price: float) -> float:
        """What a cost counts in the objective: all, or, where the least loss is looked for, next to nothing."""
        return price if self.within is None else price * _TIE / max(self.within, 1e-9)

    def rate(self, item: Usable) -> float:
        """Requests/s; an idle class gets a trace of demand where it can, so that it points at something alive."""
        alive = any(
            self.problem.tiers[pair.tier].external or self.problem.tiers[pair.tier].min_replicas > 0
            for pair in item.pairs
        )
        return max(item.load.rate, _EPSILON_RATE) if alive else item.load.rate

    def _penalty(self) -> float:
        """More per replica's worth of load than the dearest way to serve it, or than any loss of quality."""
        if self.within is not None:
            return 20 * _LOSS
        most = max((tier.price_per_hour or 0.0 for tier in self.problem.tiers.values()), default=0.0)
        dearest = 0.0
        for item in self.classes:
            cost = max(3600 * pair.cost_per_request for pair in item.pairs)
            loads = [pair.utilisation for pair in item.pairs if pair.utilisation > 0]
            if loads:
                dearest = max(dearest, cost / min(loads))
            dearest = max(dearest, cost)
        return 20 * max(most, dearest, 1e-3)

    def _tiers(self) -> None:
        for name, tier in sorted(self.problem.tiers.items()):
            if tier.price_per_hour is None:
                self.excess[name] = self.model.column(cost=self.penalty)
                continue
            low, high = tier.min_replicas, max(tier.min_replicas, tier.max_replicas)
            if self.counts is not None:
                low = high = self.counts[name]
            count = self.model.column(
                cost=self._cost(tier.price_per_hour), lower=low, upper=high, integer=self.exact and low < high
            )
            self.replicas[name] = self._paid(count, tier.price_per_hour)
            self.overload[name] = self.model.column(cost=self.penalty)
            if tier.start_cost > 0 and tier.max_replicas > tier.current_replicas:
                started = self.model.column(cost=self._cost(tier.start_cost))
                self.model.row([(count, 1.0), (started, -1.0)], upper=float(tier.current_replicas))

    def _classes(self) -> None:
        for item in self.classes:
            terms: list[tuple[int, float]] = []
            rate = self.rate(item)
            near = self.problem.near.get(item.load.key)
            for order, pair in enumerate(item.pairs):
                tier = self.problem.tiers[pair.tier]
                # Where cost does not decide, the tier that a replica's price makes dearer per request loses, then the
                # later.
                tie = _TIE * (rate * pair.utilisation * (tier.price_per_hour or 0.0) + 1e-3 * order)
                price = 3600 * rate * pair.cost_per_request
                column = self.model.column(cost=self._cost(price + tie), lower=pair.min_share, upper=pair.max_share)
                self.shares[item.load.key, pair.tier] = self._paid(column, price)
                terms.append((column, 1.0))
                if near is not None and self.exact:
                    self._stay_near(column, near.get(pair.tier, 0.0), rate * max(pair.utilisation, 1e-3))
            self.model.row(terms, lower=1.0, upper=1.0)
            if item.floor is not None:
                quality = [(self.shares[item.load.key, pair.tier], pair.score or 0.0) for pair in item.pairs]
                if self.within is not None and item.load.yields:
                    quality.append((self.model.column(cost=_LOSS * rate / self.demand), 1.0))
                self.model.row(quality, lower=item.floor)

    def _stay_near(self, column: int, share: float, scale: float) -> None:
        away = self.model.column(cost=self._cost(1e-3 * scale))
        self.model.row([(column, 1.0), (away, -1.0)], upper=share)
        self.model.row([(column, 1.0), (away, 1.0)], lower=share)

    def _capacity(self) -> None:
        """Load on a tier stays within replicas times the utilisation that its strictest class in use allows."""
        for name, count in self.replicas.items():
            users = [
                (item, pair, self.shares[item.load.key, name])
                for item in self.classes
                for pair in item.pairs
                if pair.tier == name
            ]
            if not users:
                continue
            load = [(column, self.rate(item) * pair.utilisation) for item, pair, column in users]
            load.append((self.overload[name], -1.0))
            limits = sorted({pair.limit for _, pair, _ in users})
            most = (limits[-1] if self.exact else limits[0]) * self.problem.headroom
            self.model.row([*load, (count, -most)], upper=0.0)
            if not self.exact:
                continue
            tier = self.problem.tiers[name]
            if max(tier.max_replicas, tier.min_replicas) > 0:
                # However little it is: the penalty of a load that is small enough is below a replica's price.
                for item, pair, column in users:
                    if self.rate(item) * pair.utilisation > 0:
                        self.model.row([(column, 1.0), (count, -1.0)], upper=0.0)
            for low, high in _levels(limits):
                allowed = low * self.problem.headroom
                strict = self.model.column(cost=0.0, upper=1.0, integer=True)
                slack = (most - allowed) * max(tier.max_replicas, tier.min_replicas)
                self.model.row([*load, (count, -allowed), (strict, slack)], upper=slack)
                for _, pair, column in users:
                    if low <= pair.limit <= high:
                        self.model.row([(column, 1.0), (strict, -1.0)], upper=0.0)

    def _limits(self) -> None:
        for name, excess in self.excess.items():
            tier = self.problem.tiers[name]
            users = [
                (self.shares[item.load.key, name], self.rate(item), pair)
                for item in self.classes
                for pair in item.pairs
                if pair.tier == name
            ]
            if tier.requests_limit is not None:
                terms = [(column, rate) for column, rate, _ in users]
                self.model.row([*terms, (excess, -1.0)], upper=tier.requests_limit)
            if tier.tokens_limit is not None:
                terms = [(column, rate * pair.tokens) for column, rate, pair in users]
                mean = max((pair.tokens for _, _, pair in users), default=1.0)
                self.model.row([*terms, (excess, -mean)], upper=tier.tokens_limit)

    def read(self, values: tuple[float, ...], status: str) -> Solution:
        """The solution in the problem's terms."""
        replicas = {name: round(values[column]) for name, column in sorted(self.replicas.items())}
        overload = {name: values[column] for name, column in sorted(self.overload.items()) if values[column] > 1e-6}
        excess = {name: values[column] for name, column in sorted(self.excess.items()) if values[column] > 1e-6}
        shares: dict[ClassKey, dict[str, float]] = {}
        for item in self.classes:
            mix = {pair.tier: max(0.0, values[self.shares[item.load.key, pair.tier]]) for pair in item.pairs}
            total = sum(mix.values())
            shares[item.load.key] = {tier: share / total if share > 1e-7 else 0.0 for tier, share in mix.items()}
        relaxed = [entry for item in self.classes for entry in item.relaxed]
        relaxed += [Relaxed("Latency", name) for name in overload]
        relaxed += [Relaxed("ProviderLimit", name) for name in excess]
        cost = cost_of(self.problem, replicas, shares)
        target = self.problem.cost_target_per_hour
        if target is not None and cost > target * (1 + 1e-9):
            relaxed.insert(0, Relaxed("CostTarget", "namespace"))
        return Solution(
            replicas=replicas,
            shares=shares,
            cost_per_hour=cost,
            overload=overload,
            relaxed=tuple(relaxed),
            binding={item.load.key: self._binding(item, shares[item.load.key], replicas) for item in self.classes},
            status=status,
        )

    def _binding(self, item: Usable, mix: Mapping[str, float], replicas: Mapping[str, int]) -> str:
        """What keeps a class from a cheaper mix: the first that applies; empty for none."""
        score = sum(mix[pair.tier] * (pair.score or 0.0) for pair in item.pairs)
        unreachable = any(entry.kind == "FloorUnreachable" for entry in item.relaxed)
        tight = item.floor is not None and score < item.floor + 1e-4 and len({pair.score for pair in item.pairs}) > 1
        bounded = any(
            (pair.max_share < 1 and mix[pair.tier] > pair.max_share - 1e-4)
            or (pair.min_share > 0 and mix[pair.tier] < pair.min_share + 1e-4)
            for pair in item.pairs
        )
        tiers = self.problem.tiers
        full = any(
            not tiers[pair.tier].external
            and 1e-6 < mix[pair.tier] < 1 - 1e-6
            and replicas[pair.tier] >= tiers[pair.tier].max_replicas
            for pair in item.pairs
        )
        why = set(item.excluded.values())
        causes = (
            ("Floor", unreachable or tight),
            ("WeightBounds", bounded),
            ("Capacity", full),
            ("Objective", "objective" in why),
            ("Floor", "quality unknown" in why),
            ("Clearance", bool(item.load.uncleared) and len(item.pairs) == 1),
        )
        return next((name for name, holds in causes if holds), "")


def _levels(limits: list[float]) -> list[tuple[float, float]]:
    """Ranges of the limits below the largest one, at most three: each is planned for at its lowest."""
    strict = limits[:-1]
    if not strict:
        return []
    size = math.ceil(len(strict) / _LEVELS)
    return [(strict[at], strict[min(at + size, len(strict)) - 1]) for at in range(0, len(strict), size)]
