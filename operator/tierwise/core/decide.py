"""Steps 3 and 4 of a planning round: state the problem, solve it, and move as far as stability allows.

Two problems are solved. The first is free to choose replicas: it says where the namespace should be. The second has the
replicas that are ready now: it says where requests can go meanwhile. While both agree, weights move towards the first
one's
mix; while replicas are starting, the second one's mix makes other allowed tiers take the overflow.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from tierwise.core import afford, balance, counterfactual, credit, moves, problem, scaling, state, worth
from tierwise.core.damping import LastMove
from tierwise.core.decision import Decision
from tierwise.core.memory import ClassMemory, LoopMemory, TierMemory
from tierwise.core.moves import Answers
from tierwise.core.problem import Option, Problem, Solution
from tierwise.core.quality import Floor
from tierwise.core.signals import ClassKey
from tierwise.core.situation import Situation

_SAME_FACTOR = 0.03
"""Burst factors that differ by less lead to the same plan."""


def decide(situation: Situation) -> Decision:
    """One namespace's decision."""
    stated, without, free = _stated(situation)
    if free is None:
        return _keep(situation)
    now = state.ready_problem(situation, stated, free)
    recommended = None
    if any(state.recommends(view) for view in situation.classes):
        recommended = afford.solve(state.state(situation, recommended=True))
    current = {load.key: load.current for load in stated.classes}
    planned = {name: view.planned for name, view in situation.tiers.items() if not view.external}
    present = problem.evaluate(stated, "as it is", current)
    # What the present mix costs with the replicas that it keeps; a replica on the edge of the dead band is no saving.
    kept = scaling.keep(stated, current, planned)
    stay = replace(present, cost_per_hour=problem.cost_of(stated, kept, current), replicas=kept)
    meanwhile = free if _carried(now, free) else afford.solve(now) or free
    gain = problem.worth_of(stated, free.shares) - problem.worth_of(stated, current)
    answers = Answers(stated, free, now, meanwhile, stay.cost_per_hour, recommended, gain)
    classes = {view.key: moves.move(situation, view, answers) for view in situation.classes}
    tiers = {
        name: scaling.decide(situation, tier, answers, classes)
        for name, tier in situation.tiers.items()
        if not tier.external
    }
    chosen = Option("chosen", free.cost_per_hour, free.replicas)
    # Replicas that are kept for a while yet are paid for as well.
    paid = {name: max(count, tiers[name].planned) for name, count in free.replicas.items()}
    expected = problem.cost_of(stated, paid, free.shares)
    made = Decision(
        classes,
        tiers,
        (*_options(stated), stay, chosen),
        expected,
        stay.cost_per_hour,
        free,
        _downgrade(situation, answers),
        free.cost_per_hour if without is None else without,
        worth.prices(stated, _averaged(situation)),
    )
    if not made.moved:
        return made
    return replace(made, options=(*_options(stated), *counterfactual.without(stated, free.binding), stay, chosen))


def _averaged(situation: Situation) -> dict[ClassKey, Floor]:
    """Floors that hold on average, of classes whose requests are known well enough to price them."""
    return {
        view.key: view.promised
        for view in situation.classes
        if view.promised is not None
        and view.credit is not None
        and view.movable
        and view.demand is not None
        and view.demand.tokens_known
    }


def _stated(situation: Situation) -> tuple[Problem, float | None, Solution | None]:
    """The problem, its cost without a ceiling where there is one, and its solution.

    What bursts ask of a tier depends on the mix: it is looked at with the weights in force and, where the solution is
    another one by which bursts weigh otherwise, with that.
    """
    factors = state.burst_factors(situation, state.in_force(situation))
    stated, without = _within(situation, state.state(situation, factors=factors))
    free = afford.solve(stated) if stated.classes else None
    if free is None:
        return stated, without, None
    then = state.burst_factors(situation, free.shares)
    if any(abs(then[name] / value - 1) > _SAME_FACTOR for name, value in factors.items()):
        stated, without = _within(situation, state.state(situation, factors=then))
        factors, free = then, afford.solve(stated)
    target = stated.cost_target_per_hour
    if free is None or target is None or free.cost_per_hour <= target * (1 + _SAME_FACTOR):
        return stated, without, free
    # Where floors give way too little, what is there for bursts does: rather some slow requests than many refused.
    part = target / free.cost_per_hour
    less = {name: max(1.0, part * value) if _gives(situation, free, name) else value for name, value in factors.items()}
    stated = replace(state.state(situation, factors=less), cost_target_per_hour=target)
    return stated, without, afford.solve(stated)


def _gives(situation: Situation, found: Solution, tier: str) -> bool:
    """Whether headroom of a tier may give way: a class that no budget touches keeps it."""
    users = (view.key for view in situation.users(tier) if found.shares.get(view.key, {}).get(tier, 0.0) > 0)
    return all(key in situation.hold.below_floor for key in users)


def _within(situation: Situation, stated: Problem) -> tuple[Problem, float | None]:
    """The problem with what may be spent on it, a share of what it costs without a ceiling; and that cost.

    The cost is None where nothing has to be saved.
    """
    if situation.hold.share >= 1 or not stated.classes:
        return stated, None
    without = balance.solve(stated)
    if without is None:
        return stated, None
    return replace(stated, cost_target_per_hour=situation.hold.share * without.cost_per_hour), without.cost_per_hour


def _downgrade(situation: Situation, answers: Answers) -> tuple[Solution, ...]:
    """Where the classes go that budgets downgrade; weights that are somebody else's are taken for movable."""
    downgraded = situation.hold.downgraded
    if not downgraded:
        return ()
    if all(view.movable for view in situation.classes if view.key in downgraded):
        return (answers.free, answers.meanwhile)
    stated, _ = _within(situation, state.state(situation, downgraded=True))
    free = afford.solve(stated)
    if free is None:
        return ()
    meanwhile = afford.solve(state.ready_problem(situation, stated, free))
    return (free, meanwhile) if meanwhile is not None else (free,)


def _carried(now: Problem, free: Solution) -> bool:
    """Whether the replicas that are ready carry the best mix: then there is nothing to do meanwhile."""
    needed = problem.needed_replicas(now, free.shares, headroom=now.headroom)
    return all(count <= now.tiers[name].max_replicas for name, count in needed.items())


def _keep(situation: Situation) -> Decision:
    tiers = {name: scaling.held(situation, tier) for name, tier in situation.tiers.items() if not tier.external}
    return Decision({view.key: moves.stay(view) for view in situation.classes}, tiers)


def _options(stated: Problem) -> tuple[Option, ...]:
    """All to each tier, where every class could go there."""
    options = []
    for name in sorted(stated.tiers):
        users = [load for load in stated.classes if any(pair.tier == name for pair in load.pairs)]
        if users and len(users) == len(stated.classes):
            options.append(problem.evaluate(stated, f"all to {name}", {load.key: {name: 1.0} for load in users}))
    return tuple(options)


def _shown(weights: Mapping[str, int]) -> dict[str, int]:
    return {tier: percent for tier, percent in weights.items() if percent}


def remember(memory: LoopMemory, namespace: str, decision: Decision, now: datetime) -> LoopMemory:
    """The memory after a decision: when what moved, and which way."""
    classes, tiers = dict(memory.classes), dict(memory.tiers)
    for key, outcome in decision.classes.items():
        if outcome.moved:
            before, after = outcome.view.weights, outcome.weights
            names = sorted(set(before) | set(after))
            direction = {name: after.get(name, 0) - before.get(name, 0) for name in names}
            classes[key] = replace(classes.get(key, ClassMemory()), last_move=LastMove(now, direction))
        if key in classes:
            # What is best in the moment of an overload is not what it was left for: that is known a round later.
            home = classes[key].home
            if outcome.moved and outcome.reason == moves.OVERFLOW:
                home = outcome.view.weights if home is None else home
            elif _shown(outcome.weights) == _shown(outcome.wanted):
                home = None
            classes[key] = replace(classes[key], home=home)
            held = classes[key].credit
            if held is not None and key in decision.prices:
                classes[key] = replace(classes[key], credit=credit.priced(held, decision.prices[key], now))
    for name, tier in decision.tiers.items():
        key_of_tier = (namespace, name)
        entry = tiers.get(key_of_tier, TierMemory())
        if tier.view.capacity is not None and entry.capacity is None and tier.managed:
            entry = replace(entry, capacity=tier.view.capacity)
        if tier.moved:
            change = tier.planned - tier.view.planned
            entry = replace(entry, last_scale=LastMove(now, {name: change}))
        entry = replace(entry, needs=tier.needs, running_target=tier.bounds.running_target)
        if entry != TierMemory():
            tiers[key_of_tier] = entry
    return replace(memory, classes=classes, tiers=tiers)
