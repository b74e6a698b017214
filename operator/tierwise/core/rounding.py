"""Large problems: the linear relaxation, rounded to whole replicas. Not the optimum, but near it, in bounded work.

Rounding every tier up at once pays for half a replica of each. So those nearest to a whole replica are rounded first,
and the rest is solved again, which fills what is paid for then; at last what still stands half empty is taken back, one
replica at a time, where that is cheaper. It is one programme throughout, and each step goes on from the last one's
basis.
"""

import math
from collections.abc import Mapping

from tierwise.core import milp
from tierwise.core.problem import Problem, Usable
from tierwise.core.programme import Found, Programme

_PARTS = (1 / 2, 1.0)
"""Of the tiers with part of a replica, those that are rounded at once. Where there is time, the best of both counts."""
_TIME = 400
"""Up to so many pairs of class and tier there is."""
_STEPS = 12
"""Of that; what is left then is rounded in one."""
_WORK = 12800
"""Pairs of class and tier times replicas that are tried without: smaller problems can afford more of them."""
_LEAST = 4
_WORTH = 1e-4
"""Part of the objective that a replica less has to promise, to be tried."""


def solve(
    problem: Problem, classes: tuple[Usable, ...], *, time_limit_seconds: float, within: float | None = None
) -> Found | None:
    """A mix near the cheapest; None when none is found in time. Arguments as of `programme.Programme`.

    Every tier is planned for its strictest class, used or not, so that nothing is whole but the replicas.
    """
    pairs = sum(len(item.pairs) for item in classes)
    best: tuple[float, Found] | None = None
    for part in _PARTS if pairs <= _TIME else _PARTS[:1]:
        search = _Search(Programme(problem, classes, exact=False, within=within), time_limit_seconds)
        outcome = search.round_up(part)
        if outcome is None:
            continue
        outcome = search.take_back(outcome, max(_LEAST, _WORK // pairs))
        if outcome.values is not None and (best is None or outcome.objective < best[0]):
            best = outcome.objective, search.programme.read(outcome.values, f"{outcome.status}, rounded")
    return best[1] if best is not None else None


class _Search:
    """The programme while it is rounded, with the bounds of its replicas."""

    def __init__(self, programme: Programme, time_limit_seconds: float) -> None:
        self.programme = programme
        self.warm = milp.Warm(programme.model, time_limit_seconds=time_limit_seconds)
        tiers = programme.problem.tiers
        self.least = {name: tiers[name].min_replicas for name in programme.replicas}
        self.most = {name: max(low, tiers[name].max_replicas) for name, low in self.least.items()}
        self.counts: dict[str, int] = {}

    def round_up(self, part: float) -> milp.Outcome | None:
        """Whole replicas, `counts`, a part of the tiers at a time; None when nothing is found in time."""
        lower = dict(self.least)
        outcome = self.warm.solve()
        for step in range(_STEPS):
            if outcome.values is None:
                return None
            needed = self._needed(outcome.values)
            waste = sorted(
                (count - outcome.values[self.programme.replicas[name]], name)
                for name, count in needed.items()
                if count > max(lower[name], outcome.values[self.programme.replicas[name]] + 1e-6)
            )
            if not waste:
                break
            last = step == _STEPS - 1
            chosen = waste if last else waste[: math.ceil(len(waste) * part)]
            lower |= {name: needed[name] for _, name in chosen}
            self._bound(lower, lower | {name: max(lower[name], needed[name]) for name in lower} if last else self.most)
            outcome = self.warm.solve()
        if outcome.values is None:
            return None
        self.counts = self._needed(outcome.values)
        return outcome

    def _needed(self, values: tuple[float, ...]) -> dict[str, int]:
        """Tier -> whole replicas; one at least where anything goes, however little it is."""
        needed = {}
        for name, column in self.programme.replicas.items():
            count = math.ceil(values[column] - 1e-6)
            used = count or any(user.load > 0 and values[user.column] > 1e-6 for user in self.programme.users[name])
            needed[name] = min(max(count, 1 if used else 0), self.most[name])
        return needed

    def take_back(self, best: milp.Outcome, attempts: int) -> milp.Outcome:
        """Without the replicas whose idle part is the dearest, as far as that is cheaper."""
        # A load that is small enough costs less over the limit than a replica, and some class insists on it.
        kept = {name for name, count in self.counts.items() if count == 1 and self._insisted(name)}
        self._bound(self.counts, self.counts)
        for name, count in self.counts.items():
            if not count and self.most[name]:
                self._set(name, 0)
        for _ in range(attempts):
            found = self._dearest(best, kept)
            if not found:
                break
            name = found[0]
            self._set(name, self.counts[name] - 1)
            other = self.warm.solve(below=best.objective)
            if other.values is not None and other.objective < best.objective:
                self.counts[name] -= 1
                best = other
                if self.counts[name] == 1 and self._insisted(name):
                    kept.add(name)
            else:
                self._set(name, self.counts[name])
                kept.add(name)
        return best

    def _dearest(self, best: milp.Outcome, kept: set[str]) -> list[str]:
        """Tiers whose replica is to be tried without, the dearest idle part first: those that could be worth it."""
        found: list[tuple[float, str]] = []
        for name, column in self.programme.replicas.items():
            count = self.counts[name]
            # One less never saves more than the last one costs at the margin: the programme is convex.
            if name in kept or count <= self.least[name] or best.reduced[column] <= _WORTH * abs(best.objective):
                continue
            row, each = self.programme.room.get(name, (None, 1.0))
            idle = 1.0 if row is None else -best.rows[row] / each
            price = self.programme.problem.tiers[name].price_per_hour or 0.0
            found.append((-idle * price, name))
        return [name for _, name in sorted(found)]

    def _insisted(self, name: str) -> bool:
        return any(user.load > 0 and user.pair.min_share > 0 for user in self.programme.users[name])

    def _set(self, name: str, count: int) -> None:
        """Fix one tier's replicas; without any, nothing may go there, whatever its load is."""
        columns, lower, upper = [self.programme.replicas[name]], [float(count)], [float(count)]
        for user in self.programme.users[name]:
            if user.load > 0:
                columns.append(user.column)
                lower.append(user.pair.min_share)
                upper.append(user.pair.max_share if count else 0.0)
        self.warm.bound(columns, lower, upper)

    def _bound(self, lower: Mapping[str, int], upper: Mapping[str, int]) -> None:
        names = list(self.programme.replicas)
        self.warm.bound(
            list(self.programme.replicas.values()), [lower[name] for name in names], [upper[name] for name in names]
        )
