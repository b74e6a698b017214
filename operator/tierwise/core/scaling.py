"""Step 4 of a planning round, the replicas: the autoscaler's bounds, and the steps between 0 and 1 that none takes.

Between "one more is needed" and "one can go" lies a dead band, so that noise at the edge of a whole replica moves
nothing, and one goes only when it was not needed for a while: a replica that is started again is paid for twice.
"""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

from tierwise.api.routing_policy import RebalanceMode
from tierwise.core import capacity, damping, engines, problem
from tierwise.core.decision import ClassOutcome, TierOutcome
from tierwise.core.moves import Answers
from tierwise.core.plan import ReplicaBounds
from tierwise.core.problem import Problem
from tierwise.core.signals import ClassKey
from tierwise.core.situation import ClassView, Situation, TierView, learns_target

BAND = 0.05
"""Half-width of the dead band, in shares of the safe capacity: up when load exceeds head-room plus this, down when
one replica
fewer would carry it with head-room less this."""

SOON, REGRET = 1 / 3, 2.0
"""Windows of stabilisation for which a replica must not have been needed before it goes, one of many that are not
needed; and that pass at least after the last one that was added. One of few goes after a whole window."""

MANY = 0.7
"""Many are not needed where no more than this share of the replicas was."""

NOISE_PERCENT = 5
"""Weights this close to the wanted ones have arrived: demand and capacity are never known better."""

_NEAR = (0.5, 2.0)
"""An autoscaler's target within these multiples of the measured one is near enough to stay."""

_UNPAID = "0 replicas: nobody is answered, and the budget takes the tier's minimum too"

Shares = Mapping[ClassKey, Mapping[str, float]]


def keep(stated: Problem, shares: Shares, planned: Mapping[str, int]) -> dict[str, int]:
    """In-cluster tier -> replicas that these shares keep: inside the dead band, those that are planned."""
    exact = problem.needed_replicas(stated, shares)
    most = problem.needed_replicas(stated, shares, headroom=stated.headroom + BAND)
    least = problem.needed_replicas(stated, shares, headroom=stated.headroom - BAND)
    kept: dict[str, int] = {}
    for name, count in exact.items():
        had = planned.get(name, count)
        if most[name] > had:
            kept[name] = count
        elif least[name] < had:
            kept[name] = least[name]
        else:
            kept[name] = had
    return kept


def managed(situation: Situation, name: str) -> bool:
    """Whether the loop sets a tier's replicas: some class in mode Auto uses it."""
    return any(view.mode is RebalanceMode.AUTO and not view.policy.spec.suspend for view in situation.users(name))


def held(situation: Situation, view: TierView) -> TierOutcome:
    """Bounds of a tier about which nothing can be decided: the user's, or those that it has."""
    inside = view.tier.spec.in_cluster
    if inside is None:
        raise LookupError(f"{view.name} is external")
    low, high = limits(situation, view)
    if not managed(situation, view.name):
        if not high:
            return TierOutcome(
                view, 0, ReplicaBounds(0, 0), 0 if view.planned else None, view.planned > 0, False, _UNPAID
            )
        return TierOutcome(view, max(low, 1), ReplicaBounds(max(low, 1), high), _wake(view, 1), False, False)
    planned = min(max(view.planned, low), high)
    if not planned and view.planned:
        # Nobody may be answered, and a budget pays for none.
        return TierOutcome(view, 0, ReplicaBounds(0, 0), 0, True, True, _UNPAID)
    least, most = damping.bounds(planned=planned, low=low, high=high, affordable=situation.hold.most.get(view.name))
    return TierOutcome(
        view, planned, ReplicaBounds(least, most, view.running_target), None, False, True, needs=view.memory.needs
    )


def limits(situation: Situation, view: TierView) -> tuple[int, int]:
    """Least and most replicas of an in-cluster tier: the user's, within what budgets pay for."""
    inside = view.tier.spec.in_cluster
    if inside is None:
        raise LookupError(f"{view.name} is external")
    low = situation.hold.least.get(view.name, inside.replicas.min)
    return low, max(low, min(inside.replicas.max, situation.hold.most.get(view.name, inside.replicas.max)))


def decide(
    situation: Situation, view: TierView, answers: Answers, outcomes: Mapping[ClassKey, ClassOutcome]
) -> TierOutcome:
    """One in-cluster tier's replicas after this round."""
    stuck = held(situation, view)
    inside = view.tier.spec.in_cluster
    if not stuck.managed or inside is None:
        return stuck
    low, high = limits(situation, view)
    shares = {key: {t: w / 100 for t, w in outcome.weights.items()} for key, outcome in outcomes.items()}
    users = situation.users(view.name)
    wanted = keep(answers.stated, shares, {view.name: stuck.planned}).get(view.name, low)
    if users and all(_arrived(outcomes[user.key]) and answers.saves(user) for user in users):
        # The best mix is in force, give or take, and needs fewer replicas: the dead band is no reason to pay for them.
        near = problem.needed_replicas(answers.stated, shares, headroom=answers.stated.headroom + BAND / 2)
        wanted = min(wanted, near.get(view.name, low))
    if any(user.movable and (outcomes[user.key].moved or answers.saves(user)) for user in users):
        # A better mix is being moved to: its replicas have to be there first, and stay until it is reached.
        wanted = max(wanted, answers.free.replicas.get(view.name, low))
    if any(_flows(outcomes[user.key], view.name) for user in users if user.key not in situation.hold.denied):
        wanted = max(wanted, 1)
    wanted = min(max(wanted, low), high)
    planned = stuck.planned
    window = max((user.window_seconds for user in users), default=0.0)
    needs = _needs(view, wanted, situation.now, window)
    if wanted > planned:
        planned = wanted
    elif wanted < planned and all(_known(user) for user in users):
        planned = max(low, min(planned, _shrunk(situation, view, needs, window)))
    least, most = damping.bounds(planned=planned, low=low, high=high, affordable=situation.hold.most.get(view.name))
    sending = tuple(user for user in users if shares.get(user.key, {}).get(view.name, 0.0) > 0)
    target = _running_target(view, sending, moved=planned != view.planned)
    scale = _wake(view, planned)
    if planned == 0:
        scale = 0 if view.planned > 0 else None
        least, most = 0, 0
    moved = planned != view.planned
    message = _message(view, planned, (least, most), users, shares) if moved else ""
    return TierOutcome(view, planned, ReplicaBounds(least, most, target), scale, moved, True, message, needs)


def _running_target(view: TierView, users: tuple[ClassView, ...], *, moved: bool) -> int | None:
    """Running requests of a replica at its safe utilisation: where an autoscaler may add one between two rounds.

    Written anew when replicas move anyway, or when it is far off: never for noise.
    """
    known, before, inside = view.capacity, view.running_target, view.tier.spec.in_cluster
    if inside is None or not learns_target(inside):
        return None
    if known is None or known.provenance != "measured":
        return before
    limits = [capacity.utilisation_limit(known, user.objective) for user in users]
    target = capacity.running_at(known, min((limit for limit in limits if limit > 0), default=0.0))
    if target is None:
        return before
    shown = before if before is not None else float(engines.scaling_target(inside))
    return before if not moved and _NEAR[0] <= target / shown <= _NEAR[1] else target


def _needs(view: TierView, wanted: int, now: datetime, seconds: float) -> tuple[tuple[datetime, int], ...]:
    """What was needed within the last `seconds`, with what is now; an entry that a later one exceeds says nothing."""
    start = now - timedelta(seconds=seconds)
    return (*((time, count) for time, count in view.memory.needs if time >= start and count > wanted), (now, wanted))


def _arrived(outcome: ClassOutcome) -> bool:
    """Whether a class's weights are those that are wanted, up to noise."""
    names = {*outcome.weights, *outcome.wanted}
    return all(abs(outcome.weights.get(name, 0) - outcome.wanted.get(name, 0)) <= NOISE_PERCENT for name in names)


def _flows(outcome: ClassOutcome, tier: str) -> bool:
    """Whether requests go to a tier: it has a weight, and its class has had traffic within the window."""
    demand = outcome.view.demand
    return outcome.weights.get(tier, 0) > 0 and demand is not None and demand.ahead > 0


def _wake(view: TierView, planned: int) -> int | None:
    """The step from 0 to 1, which no autoscaler takes."""
    return 1 if view.planned == 0 and planned >= 1 else None


def _known(user: ClassView) -> bool:
    """Whether a class's demand is known, and for as long as it must have been low."""
    return user.missing is None and user.demand is not None and user.demand.settled


def _shrunk(situation: Situation, view: TierView, needs: tuple[tuple[datetime, int], ...], window: float) -> int:
    """What is left once those replicas go that were not needed for long enough.

    Much too many go soon; the last one or two, only once it is clear that they will not be started again.
    """
    last = view.memory.last_scale
    since = (situation.now - last.time).total_seconds() if last is not None else math.inf
    soon = SOON * window
    if since < soon:
        return view.planned
    lately = max(count for time, count in needs if (situation.now - time).total_seconds() <= soon)
    if lately <= MANY * view.planned:
        return lately
    added = last is not None and last.direction.get(view.name, 1) > 0
    return view.planned if added and since < REGRET * window else needs[0][1]


def _message(
    view: TierView, planned: int, bounds: tuple[int, int], users: tuple[ClassView, ...], shares: Shares
) -> str:
    rate = sum(v.demand.ahead * shares.get(v.key, {}).get(view.name, 0.0) for v in users if v.demand is not None)
    known = view.capacity.provenance if view.capacity is not None else "declared"
    return (
        f"{view.planned} -> {planned} replicas for {rate:.2f} requests/s "
        f"(forecast; capacity {known}); autoscaler between {bounds[0]} and {bounds[1]}"
    )
