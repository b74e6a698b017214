"""The joint choice of weights and replicas: one small mixed-integer programme per namespace.

Weights and replicas are one problem because an idle replica that runs anyway serves for nothing: the average cost of a token
misprices it. Costs are currency units per hour; rates are per second; shares and utilisations are fractions.

When not everything can hold, constraints give way in this order, and the solution says which did: the cost target, then the
latency objective (load above the safe utilisation). A quality floor that no allowed mix reaches is replaced by the best
reachable quality, and clearance can not give way: a tier that is not cleared is not in the problem.
"""

import math
from collections.abc import Mapping

from tierwise.core import milp
from tierwise.core.problem import Pair, Problem, Relaxed, Solution, Usable, cost_of, usable
from tierwise.core.signals import ClassKey

TIME_LIMIT_SECONDS = 2.0
RELATIVE_GAP = 1e-4

_EPSILON_RATE = 1e-3
_LEVELS = 3
_TIE = 1e-5


def solve(problem: Problem, *, time_limit_seconds: float = TIME_LIMIT_SECONDS) -> Solution | None:
    """The cheapest mix; None only when the solver found no point in time (the caller then keeps what is in force)."""
    ready = tuple(usable(load) for load in problem.classes)
    ready = tuple(item for item in ready if item.pairs)
    built = _Built(problem, ready)
    outcome = built.model.solve(time_limit_seconds=time_limit_seconds, relative_gap=RELATIVE_GAP)
    if outcome.values is None:
        return None
    return built.read(outcome.values, outcome.status)


class _Built:
    """The programme of one problem, and how to read its values."""

    def __init__(self, problem: Problem, classes: tuple[Usable, ...]) -> None:
        self.problem = problem
        self.classes = classes
        self.model = milp.Model()
        self.replicas: dict[str, int] = {}
        self.overload: dict[str, int] = {}
        self.excess: dict[str, int] = {}
        self.shares: dict[tuple[ClassKey, str], int] = {}
        self.penalty = self._penalty()
        self._tiers()
        self._classes()
        self._capacity()
        self._limits()

    def rate(self, item: Usable) -> float:
        """Requests/s; an idle class with somewhere to go gets a trace of demand, so that it points at something alive."""
        alive = any(
            self.problem.tiers[pair.tier].external or self.problem.tiers[pair.tier].min_replicas > 0
            for pair in item.pairs
        )
        return max(item.load.rate, _EPSILON_RATE) if alive else item.load.rate

    def _penalty(self) -> float:
        """More per replica's worth of load than the dearest way to serve it."""
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
            count = self.model.column(
                cost=tier.price_per_hour,
                lower=tier.min_replicas,
                upper=max(tier.min_replicas, tier.max_replicas),
                integer=tier.min_replicas < tier.max_replicas,
            )
            self.replicas[name] = count
            self.overload[name] = self.model.column(cost=self.penalty)
            if tier.start_cost > 0 and tier.max_replicas > tier.current_replicas:
                started = self.model.column(cost=tier.start_cost)
                self.model.row([(count, 1.0), (started, -1.0)], upper=float(tier.current_replicas))

    def _classes(self) -> None:
        for item in self.classes:
            terms: list[tuple[int, float]] = []
            rate = self.rate(item)
            near = self.problem.near.get(item.load.key)
            for order, pair in enumerate(item.pairs):
                tier = self.problem.tiers[pair.tier]
                # Where cost does not decide, the tier that a replica's price makes dearer per request loses, then the later.
                tie = _TIE * (rate * pair.utilisation * (tier.price_per_hour or 0.0) + 1e-3 * order)
                column = self.model.column(
                    cost=3600 * rate * pair.cost_per_request + tie, lower=pair.min_share, upper=pair.max_share
                )
                self.shares[item.load.key, pair.tier] = column
                terms.append((column, 1.0))
                if near is not None:
                    self._stay_near(column, near.get(pair.tier, 0.0), rate * max(pair.utilisation, 1e-3))
            self.model.row(terms, lower=1.0, upper=1.0)
            if item.floor is not None:
                quality = [(self.shares[item.load.key, pair.tier], pair.score or 0.0) for pair in item.pairs]
                self.model.row(quality, lower=item.floor)

    def _stay_near(self, column: int, share: float, scale: float) -> None:
        away = self.model.column(cost=1e-3 * scale)
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
            most = limits[-1] * self.problem.headroom
            self.model.row([*load, (count, -most)], upper=0.0)
            tier = self.problem.tiers[name]
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
        if any(entry.kind == "FloorUnreachable" for entry in item.relaxed):
            return "Floor"
        score = sum(mix[pair.tier] * (pair.score or 0.0) for pair in item.pairs)
        if item.floor is not None and score < item.floor + 1e-4 and len(item.pairs) > 1 and _mixed_scores(item.pairs):
            return "Floor"
        if any(pair.max_share < 1 and mix[pair.tier] > pair.max_share - 1e-4 for pair in item.pairs):
            return "WeightBounds"
        if any(pair.min_share > 0 and mix[pair.tier] < pair.min_share + 1e-4 for pair in item.pairs):
            return "WeightBounds"
        for pair in item.pairs:
            tier = self.problem.tiers[pair.tier]
            if tier.external or not 1e-6 < mix[pair.tier] < 1 - 1e-6:
                continue
            if replicas[tier.name] >= tier.max_replicas:
                return "Capacity"
        if "objective" in item.excluded.values():
            return "Objective"
        if "quality unknown" in item.excluded.values():
            return "Floor"
        if item.load.uncleared and len(item.pairs) == 1:
            return "Clearance"
        return ""


def _mixed_scores(pairs: tuple[Pair, ...]) -> bool:
    return len({pair.score for pair in pairs}) > 1


def _levels(limits: list[float]) -> list[tuple[float, float]]:
    """Ranges of limits clearly below the largest one, at most three: each is planned for at its lowest."""
    strict = [limit for limit in limits if limit < 0.9 * limits[-1]]
    if not strict:
        return [] if limits[0] >= limits[-1] - 1e-12 else [(limits[0], limits[-1] - 1e-12)]
    size = math.ceil(len(strict) / _LEVELS)
    ranges = [(strict[at], strict[min(at + size, len(strict)) - 1]) for at in range(0, len(strict), size)]
    near = [limit for limit in limits if 0.9 * limits[-1] <= limit < limits[-1]]
    if near:
        ranges.append((near[0], near[-1]))
    return ranges
