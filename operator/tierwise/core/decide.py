"""Steps 3 and 4 of a planning round: state the problem, solve it, and move as far as stability allows.

Two problems are solved. The first is free to choose replicas: it says where the namespace should be. The second has the
replicas that are ready now: it says where requests can go meanwhile. While both agree, weights move towards the first one's
mix; while replicas are starting, the second one's mix makes other allowed tiers take the overflow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from tierwise.api.routing_policy import RebalanceMode
from tierwise.core import balance, capacity, damping, problem
from tierwise.core.damping import LastMove, Mix
from tierwise.core.memory import ClassMemory, LoopMemory, TierMemory
from tierwise.core.plan import ReplicaBounds
from tierwise.core.problem import ClassLoad, Option, Pair, Problem, Solution, Tier
from tierwise.core.signals import ClassKey
from tierwise.core.situation import ClassView, Situation, TierView

START_SPREAD_SECONDS = 1800.0
"""A replica's start-up is charged as if it then ran this long: cheap for short starts, a reason to wait for long ones."""

UNKNOWN_PRICE_FACTOR = 10.0
"""What has no price is taken to be this much dearer than the dearest that has one: unknown is never free."""


@dataclass(frozen=True, slots=True)
class ClassOutcome:
    """What becomes of a class.

    Attributes:
        view: as it stands. weights: percent after this round. wanted: percent where it should be.
        moved: the weights change in this round.
        binding: what keeps it from a cheaper mix (the solver's word; empty for none).
        reason: CamelCase. message: in words, with figures.
    """

    view: ClassView
    weights: Mapping[str, int]
    wanted: Mapping[str, int]
    moved: bool
    binding: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TierOutcome:
    """What becomes of an in-cluster tier.

    Attributes:
        view: as it stands. planned: replicas wanted. bounds: the autoscaler's.
        scale: replicas to set directly (0 or 1), else None.
        moved: `planned` differs from what it was. managed: some class in mode Auto uses it.
        message: in words.
    """

    view: TierView
    planned: int
    bounds: ReplicaBounds
    scale: int | None
    moved: bool
    managed: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """One namespace's outcome.

    Attributes:
        classes, tiers: by key and name.
        options: mixes that were considered, the chosen one last.
        cost_per_hour: of the chosen mix, estimated. stay_cost_per_hour: of the present weights.
        solution: of the free problem; None when nothing could be decided.
    """

    classes: Mapping[ClassKey, ClassOutcome]
    tiers: Mapping[str, TierOutcome]
    options: tuple[Option, ...] = ()
    cost_per_hour: float | None = None
    stay_cost_per_hour: float | None = None
    solution: Solution | None = None

    @property
    def moved(self) -> bool:
        """Whether anything moves."""
        return any(c.moved for c in self.classes.values()) or any(t.moved for t in self.tiers.values())


def decide(situation: Situation) -> Decision:
    """One namespace's decision."""
    stated = state(situation)
    free = balance.solve(stated) if stated.classes else None
    if free is None:
        return _keep(situation, "NoSolution" if stated.classes else "NoDemand")
    now = ready_problem(situation, stated, free)
    meanwhile = balance.solve(now) or free
    current = {load.key: load.current for load in stated.classes}
    stay = problem.evaluate(stated, "as it is", current)
    # The fixed cost of what runs is the same for both: only the free problem's cost compares mixes.
    classes: dict[ClassKey, ClassOutcome] = {}
    for view in situation.classes:
        classes[view.key] = _move(situation, view, stated, now, free, meanwhile, stay)
    shares = {key: {t: w / 100 for t, w in outcome.weights.items()} for key, outcome in classes.items()}
    tiers = {
        name: _replicas(situation, tier, stated, free, shares)
        for name, tier in situation.tiers.items()
        if not tier.external
    }
    chosen = Option("chosen", free.cost_per_hour, free.replicas)
    return Decision(classes, tiers, (*_options(stated), stay, chosen), free.cost_per_hour, stay.cost_per_hour, free)


def state(situation: Situation) -> Problem:
    """The namespace's problem at the demand to plan for."""
    dearest = _dearest(situation)
    tiers = {name: _tier(view, dearest) for name, view in situation.tiers.items()}
    loads = tuple(
        load for view in situation.classes if (load := _load(situation, view, dearest)) is not None and load.pairs
    )
    return Problem(tiers=tiers, classes=loads, headroom=situation.settings.headroom)


def ready_problem(situation: Situation, stated: Problem, free: Solution) -> Problem:
    """The same with the replicas that are ready now (never more than are wanted), at the demand of now."""
    tiers = {}
    for name, tier in stated.tiers.items():
        if tier.external:
            tiers[name] = tier
            continue
        ready = situation.tiers[name].ready
        count = min(ready, max(free.replicas.get(name, ready), situation.tiers[name].planned))
        tiers[name] = replace(tier, min_replicas=count, max_replicas=count, start_cost=0.0)
    demands = {view.key: view.demand for view in situation.classes}
    classes = tuple(
        replace(load, rate=found.peak) if (found := demands.get(load.key)) is not None else load
        for load in stated.classes
    )
    return replace(stated, tiers=tiers, classes=classes, near=free.shares)


def _dearest(situation: Situation) -> float:
    prices = [float(view.price_per_hour) for view in situation.tiers.values() if view.price_per_hour is not None]
    return UNKNOWN_PRICE_FACTOR * max(prices, default=1.0)


def _tier(view: TierView, dearest: float) -> Tier:
    inside, outside = view.tier.spec.in_cluster, view.tier.spec.external
    if inside is None:
        limits = outside.limits if outside is not None else None
        requests = limits.requests_per_minute if limits is not None else None
        tokens = limits.tokens_per_minute if limits is not None else None
        return Tier(
            view.name,
            requests_limit=requests / 60 if requests is not None else None,
            tokens_limit=tokens / 60 if tokens is not None else None,
        )
    price = float(view.price_per_hour) if view.price_per_hour is not None else dearest
    return Tier(
        view.name,
        price_per_hour=price,
        min_replicas=inside.replicas.min,
        max_replicas=inside.replicas.max,
        current_replicas=view.planned,
        start_cost=price * view.startup_seconds / START_SPREAD_SECONDS,
    )


def _load(situation: Situation, view: ClassView, dearest: float) -> ClassLoad | None:
    if view.demand is None:
        return None
    usable = [name for name in view.allowed if situation.tiers[name].usable]
    pairs = tuple(_pair(situation, view, name, dearest) for name in usable)
    if not view.movable:
        # Its weights are somebody else's, or nothing may move: they are a given load for the replicas.
        pairs = tuple(replace(pair, min_share=pair.current, max_share=pair.current) for pair in pairs)
    floor = view.floor if view.movable else None
    return ClassLoad(view.key, view.demand.ahead, pairs, floor, view.uncleared)


def _pair(situation: Situation, view: ClassView, name: str, dearest: float) -> Pair:
    tier = situation.tiers[name]
    ref = view.spec.tier(name)
    forecast = view.demand
    if ref is None or forecast is None:  # never: the caller asks for the class's own tiers, with a forecast
        raise LookupError(f"{name} is no tier of {view.key}")
    tokens = forecast.tokens_on(name)
    cost = tier.cost_per_request(*tokens)
    score = view.scores.get(name)
    utilisation, limit = 0.0, 1.0
    seen = view.memory.latency.get(name)
    if tier.capacity is not None:
        utilisation = forecast.units_on(name) / tier.capacity.saturation
        limit = capacity.utilisation_limit(
            tier.capacity, view.objective, idle_latency_seconds=seen.latency_seconds if seen is not None else None
        )
    elif not _external_meets(view, tier):
        limit = 0.0
    return Pair(
        tier=name,
        cost_per_request=dearest * sum(tokens) / 1e6 if cost is None else cost,
        utilisation=utilisation,
        limit=limit,
        tokens=sum(tokens),
        score=score.value if score is not None else None,
        min_share=(ref.min_weight or 0) / 100,
        max_share=(100 if ref.max_weight is None else ref.max_weight) / 100,
        current=view.weights.get(name, 0) / 100,
    )


def _external_meets(view: ClassView, tier: TierView) -> bool:
    """Whether a provider meets the objective: by what gateways measured, else by what its spec declares."""
    seen, outside = view.memory.latency.get(tier.name), tier.tier.spec.external
    declared = outside.latency if outside is not None else None
    ttft = seen.ttfb_seconds if seen is not None else None
    if ttft is None and declared is not None and declared.ttft_p95 is not None:
        ttft = declared.ttft_p95.seconds
    between = (
        declared.inter_token_p95.seconds if declared is not None and declared.inter_token_p95 is not None else None
    )
    whole = seen.latency_seconds if seen is not None else None
    checks = (
        (ttft, view.objective.ttft_seconds),
        (between, view.objective.inter_token_seconds),
        (whole, view.objective.latency_seconds),
    )
    return all(value is None or bound is None or value <= bound for value, bound in checks)


def _mix(view: ClassView, load: ClassLoad) -> Mix:
    return Mix(
        scores={pair.tier: pair.score for pair in load.pairs if pair.score is not None},
        floor=view.floor.value if view.floor is not None else None,
        low={pair.tier: round(100 * pair.min_share) for pair in load.pairs},
        high={pair.tier: round(100 * pair.max_share) for pair in load.pairs},
    )


def _move(
    situation: Situation,
    view: ClassView,
    stated: Problem,
    now: Problem,
    free: Solution,
    meanwhile: Solution,
    stay: Option,
) -> ClassOutcome:
    load = next((item for item in stated.classes if item.key == view.key), None)
    if load is None or not view.movable:
        wanted = _wanted(view, load, free)
        return replace(_stay(view), wanted=wanted or view.weights, binding=free.binding.get(view.key, ""))
    present = problem.evaluate(now, "now", {item.key: item.current for item in now.classes})
    overloaded = _overloaded(view, now)
    broken = [text for text in present.why_not.split("; ") if view.key[2] in text] if present.why_not else []
    urgent = overloaded or bool(broken)
    ideal = damping.whole_percents(free.shares.get(view.key, load.current), _mix(view, load))
    target = damping.whole_percents(meanwhile.shares.get(view.key, load.current), _mix(view, load))
    binding = free.binding.get(view.key, "")
    current = {tier: view.weights.get(tier, 0) for tier in target}
    delta = {tier: target[tier] - current.get(tier, 0) for tier in target}
    if not any(delta.values()):
        return ClassOutcome(
            view, view.weights, ideal, False, binding, "Steady", "the weights in force are the best mix"
        )
    small = max(map(abs, delta.values())) < 2
    saves = damping.worthwhile(stay.cost_per_hour, free.cost_per_hour, view.rules.min_saving)
    if not urgent and (small or not saves):
        return ClassOutcome(
            view, view.weights, ideal, False, binding, "SavingTooSmall",
            f"a better mix would save less than {100 * view.rules.min_saving:g}%",
        )  # fmt: skip
    if not damping.may_move(view.memory.last_move, delta, situation.now, view.rules, urgent=urgent):
        return ClassOutcome(view, view.weights, ideal, False, binding, "CoolingDown", "waits for its cool-down")
    most = 100 if overloaded else view.rules.max_step
    moved = damping.step(current, target, max_step=most, mix=_mix(view, load))
    moved = {tier: percent for tier, percent in moved.items() if percent}
    if moved == dict(view.weights):
        return ClassOutcome(
            view, view.weights, ideal, False, binding, "Steady", "the weights in force are the best mix"
        )
    reason = "Overflow" if overloaded else "FloorRestored" if broken else "CheaperMix"
    return ClassOutcome(view, moved, ideal, True, binding, reason, _why(view, moved, reason, broken, stay, free))


def _wanted(view: ClassView, load: ClassLoad | None, free: Solution) -> dict[str, int]:
    """What would be best for a class that may not move: only mode Recommend asks, with its own problem's answer."""
    if load is None or view.mode is not RebalanceMode.RECOMMEND or view.missing is not None:
        return {}
    shares = free.shares.get(view.key)
    return damping.whole_percents(shares, _mix(view, load)) if shares else {}


def _overloaded(view: ClassView, now: Problem) -> bool:
    """Whether a tier that the class uses now has more load than its ready replicas carry within the objective."""
    for pair in next(item for item in now.classes if item.key == view.key).pairs:
        tier = now.tiers[pair.tier]
        if tier.external or pair.current <= 0:
            continue
        carried = sum(
            item.rate * other.current * other.utilisation
            for item in now.classes
            for other in item.pairs
            if other.tier == pair.tier
        )
        # Full use of the safe utilisation is no overload yet: the head-room is there to be used while replicas start.
        if carried > max(pair.limit, 0.05) * tier.max_replicas + 1e-6:
            return True
    return False


def _why(
    view: ClassView, moved: Mapping[str, int], reason: str, broken: list[str], stay: Option, free: Solution
) -> str:
    rate = view.demand.now if view.demand is not None else 0.0
    path = ", ".join(
        f"{tier} {view.weights.get(tier, 0)}% -> {moved.get(tier, 0)}%"
        for tier in view.allowed
        if view.weights.get(tier, 0) != moved.get(tier, 0)
    )
    text = f"{path} at {rate:.2f} requests/s (measured)"
    if reason == "Overflow":
        return f"{text}: more load than ready replicas carry within the objective, others take it"
    if reason == "FloorRestored":
        return f"{text}: {broken[0]}"
    return f"{text}: estimated {stay.cost_per_hour:.2f} -> {free.cost_per_hour:.2f} per hour for the namespace"


def _stay(view: ClassView) -> ClassOutcome:
    if view.missing is not None and view.mode is RebalanceMode.AUTO:
        reason, message = "MetricsStale", f"nothing moves: {view.missing.reason}"
    elif view.policy.spec.suspend:
        reason, message = "Suspended", "spec.suspend is true: nothing moves"
    elif view.mode is not RebalanceMode.AUTO:
        reason, message = view.mode.value, f"spec.rebalance.mode is {view.mode.value}: the weights are the spec's"
    else:
        reason, message = "NoDemand", "no request has been measured yet"
    return ClassOutcome(view, view.weights, view.weights, False, "", reason, message)


def _keep(situation: Situation, reason: str) -> Decision:
    del reason
    tiers = {name: _held(situation, tier) for name, tier in situation.tiers.items() if not tier.external}
    return Decision({view.key: _stay(view) for view in situation.classes}, tiers)


def _managed(situation: Situation, name: str) -> bool:
    return any(view.mode is RebalanceMode.AUTO and not view.policy.spec.suspend for view in situation.users(name))


def _held(situation: Situation, view: TierView) -> TierOutcome:
    """Bounds of a tier about which nothing can be decided: the user's, or those that it has."""
    inside = view.tier.spec.in_cluster
    if inside is None:
        raise LookupError(f"{view.name} is external")
    low, high = inside.replicas.min, inside.replicas.max
    managed = _managed(situation, view.name)
    if not managed:
        return TierOutcome(view, max(low, 1), ReplicaBounds(max(low, 1), high), _wake(view, 1), False, False)
    planned = min(max(view.planned, low), high)
    least, most = damping.bounds(planned=planned, low=low, high=high)
    return TierOutcome(view, planned, ReplicaBounds(least, most), None, False, True)


def _wake(view: TierView, planned: int) -> int | None:
    """The step from 0 to 1, which no autoscaler takes."""
    return 1 if view.planned == 0 and planned >= 1 else None


def _replicas(
    situation: Situation,
    view: TierView,
    stated: Problem,
    free: Solution,
    shares: Mapping[ClassKey, Mapping[str, float]],
) -> TierOutcome:
    held = _held(situation, view)
    inside = view.tier.spec.in_cluster
    if not held.managed or inside is None:
        return held
    low, high = inside.replicas.min, inside.replicas.max
    # What the weights after this round need, and what the best mix needs: the larger, so that replicas are there first.
    needed = problem.needed_replicas(stated, shares).get(view.name, low)
    wanted = min(max(needed, free.replicas.get(view.name, low), low), high)
    if needed == 0 and any(outcome.get(view.name, 0.0) > 0 for outcome in shares.values()):
        wanted = max(wanted, 1)
    planned = held.planned
    users = situation.users(view.name)
    if wanted > planned or (wanted < planned and _may_shrink(situation, view, users)):
        planned = wanted
    least, most = damping.bounds(planned=planned, low=low, high=high)
    moved = planned != view.planned
    scale = _wake(view, planned)
    if planned == 0 and view.planned > 0:
        scale = 0
    message = ""
    if moved:
        rate = sum(v.demand.ahead * shares.get(v.key, {}).get(view.name, 0.0) for v in users if v.demand is not None)
        known = view.capacity.provenance if view.capacity is not None else "declared"
        message = (
            f"{view.planned} -> {planned} replicas for {rate:.2f} requests/s "
            f"(forecast; capacity {known}); autoscaler between {least} and {most}"
        )
    return TierOutcome(view, planned, ReplicaBounds(least, most), scale, moved, True, message)


def _may_shrink(situation: Situation, view: TierView, users: tuple[ClassView, ...]) -> bool:
    """Fewer replicas only when demand has been low for long enough, is known, and the last change is past its cool-down."""
    if any(user.missing is not None or user.demand is None or not user.demand.settled for user in users):
        return False
    last = view.memory.last_scale
    pause = max((user.rules.cooldown_seconds for user in users), default=0.0)
    return last is None or (situation.now - last.time).total_seconds() >= pause


def _options(stated: Problem) -> tuple[Option, ...]:
    """All to each tier, where every class could go there."""
    options = []
    for name in sorted(stated.tiers):
        users = [load for load in stated.classes if any(pair.tier == name for pair in load.pairs)]
        if users and len(users) == len(stated.classes):
            options.append(problem.evaluate(stated, f"all to {name}", {load.key: {name: 1.0} for load in users}))
    return tuple(options)


def remember(memory: LoopMemory, namespace: str, decision: Decision, now: datetime) -> LoopMemory:
    """The memory after a decision: when what moved, and which way."""
    classes, tiers = dict(memory.classes), dict(memory.tiers)
    for key, outcome in decision.classes.items():
        if outcome.moved:
            before, after = outcome.view.weights, outcome.weights
            names = sorted(set(before) | set(after))
            direction = {name: after.get(name, 0) - before.get(name, 0) for name in names}
            classes[key] = replace(classes.get(key, ClassMemory()), last_move=LastMove(now, direction))
    for name, tier in decision.tiers.items():
        key_of_tier = (namespace, name)
        entry = tiers.get(key_of_tier, TierMemory())
        if tier.view.capacity is not None and entry.capacity is None and tier.managed:
            entry = replace(entry, capacity=tier.view.capacity)
        if tier.moved:
            change = tier.planned - tier.view.planned
            entry = replace(entry, last_scale=LastMove(now, {name: change}))
        if entry != TierMemory():
            tiers[key_of_tier] = entry
    return replace(memory, classes=classes, tiers=tiers)
