"""Step 4 of a planning round, the weights: from the solver's answer to what one round may change.

Reasons to move, strongest first: requests go where nobody answers; a tier has more load than its ready replicas carry
within the
objective; a floor, bound or limit is broken; the mix could be cheaper. Only the last one needs a saving and waits for
the cool-down. The step limit gives way where requests fail or the objective is breached already, never otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tierwise.api.routing_policy import RebalanceMode
from tierwise.core import capacity, damping, problem
from tierwise.core.damping import Mix
from tierwise.core.decision import ClassOutcome
from tierwise.core.problem import ClassLoad, Problem, Solution
from tierwise.core.signals import value_of
from tierwise.core.situation import ClassView, Situation, TierView

SEVERE = 1.1
"""Load over the safe capacity of ready replicas from which on a class does not move by steps any more."""

OVERFLOW = "Overflow"
"""Reason of a move away from replicas that can not carry the load now."""

OVERFLOW_FROM = 0.95
"""Mean load over the safe capacity of ready replicas from which on others take a part: bursts are above the mean."""

_OVERFLOW_PERCENT = 5
"""While an overflow stands, smaller corrections of it are noise."""

_YIELD_PERCENT = 5
"""Smaller moves of a class whose floor yields to a ceiling are noise: what may be spent moves with every count."""

_CENT = 0.005
"""Less is not worth a word."""

_SMALL_PERCENT = 2
"""Saving moves below this many points are noise."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the solver said.

    Attributes:
        stated: the problem with replicas free, at the demand to plan for. free: its solution.
        now: the problem with the replicas that are ready. meanwhile: its solution.
        stay_cost: per hour, of the present weights with the replicas that they keep.
        recommended: solution with mode Recommend taken for Auto; None when no class asks.
        gain: what the best mix's quality is worth more than the present one's, per hour, where floors hold on average.
    """

    stated: Problem
    free: Solution
    now: Problem
    meanwhile: Solution
    stay_cost: float
    recommended: Solution | None = None
    gain: float = 0.0

    def saves(self, view: ClassView) -> bool:
        """Whether the best mix is cheaper by as much as the policy asks for."""
        return damping.worthwhile(self.stay_cost, self.free.cost_per_hour - self.gain, view.rules.min_saving)


@dataclass(frozen=True, slots=True)
class _Cause:
    """Why a class has to move. `severe`: the step limit gives way."""

    reason: str
    text: str
    severe: bool


def mix_of(view: ClassView, load: ClassLoad) -> Mix:
    """What the class's rounded weights must respect."""
    floor = view.floor.value if view.floor is not None else None
    if load.yields or (view.floor is not None and view.floor.only is not None):
        floor = None
    return Mix(
        scores={pair.tier: pair.score for pair in load.pairs if pair.score is not None},
        floor=floor,
        low={pair.tier: round(100 * pair.min_share) for pair in load.pairs},
        high={pair.tier: round(100 * pair.max_share) for pair in load.pairs},
    )


def move(situation: Situation, view: ClassView, answers: Answers) -> ClassOutcome:
    """One class's weights after this round."""
    load = next((item for item in answers.stated.classes if item.key == view.key), None)
    binding = answers.free.binding.get(view.key, "")
    denied = view.key in situation.hold.denied
    if load is None or denied or not view.movable:
        return replace(
            stay(view, denied=denied), wanted=_recommended(view, load, answers) or view.weights, binding=binding
        )
    mix = mix_of(view, load)
    ideal = damping.whole_percents(answers.free.shares.get(view.key, load.current), mix)
    held = ClassOutcome(view, view.weights, ideal, False, binding, "Steady", "the weights in force are the best mix")
    if not _alive(load, answers.now):
        return replace(held, reason="NoReadyTier", message="no tier of the class takes requests: weights stay")
    target = damping.whole_percents(answers.meanwhile.shares.get(view.key, load.current), mix)
    names = sorted(set(target) | set(view.weights))
    current = {name: view.weights.get(name, 0) for name in names}
    delta = {name: target.get(name, 0) - current[name] for name in names}
    if not any(delta.values()):
        return held
    cause = _cause(situation, view, load, answers.now) or _ceiling(situation, view, answers)
    if cause is None and view.memory.home is not None and answers.meanwhile is answers.free:
        # Back to where it came from: as no request gains by a detour, neither steps nor a cool-down hold it up.
        cause = _Cause("OverflowEnded", "ready replicas carry the load again", severe=True)
    pause = _pause(situation, view, answers, delta, cause)
    if pause is not None:
        return replace(held, reason=pause[0], message=pause[1])
    most = 100 if cause is not None and cause.severe else view.rules.max_step
    after = damping.step(current, target, max_step=most, mix=mix)
    after = {name: percent for name, percent in after.items() if percent}
    if after == dict(view.weights):
        return held
    reason = cause.reason if cause is not None else "CheaperMix"
    return ClassOutcome(view, after, ideal, True, binding, reason, _why(view, after, cause, answers))


def _pause(
    situation: Situation, view: ClassView, answers: Answers, delta: Mapping[str, int], cause: _Cause | None
) -> tuple[str, str] | None:
    """Why a move that would be better is not made now, as reason and words; None when it is made."""
    farthest = max(map(abs, delta.values()))
    if view.key in situation.hold.below_floor and farthest < _YIELD_PERCENT and (cause is None or not cause.severe):
        return "Steady", "the weights in force are near enough to what the ceiling asks for"
    if cause is None and view.memory.home is not None and farthest < _OVERFLOW_PERCENT:
        return "Steady", "others take what ready replicas do not carry"
    if cause is None and (farthest < _SMALL_PERCENT or not answers.saves(view)):
        return "SavingTooSmall", f"a better mix would save less than {100 * view.rules.min_saving:g}%"
    if not damping.may_move(view.memory.last_move, delta, situation.now, view.rules, urgent=cause is not None):
        return "CoolingDown", "waits for its cool-down"
    return None


def stay(view: ClassView, *, denied: bool = False) -> ClassOutcome:
    """The outcome of a class that is not moved, whatever the solver says."""
    if denied:
        reason, message = "Denied", "nothing moves: a budget denies the class's requests"
    elif view.policy.spec.suspend:
        reason, message = "Suspended", "spec.suspend is true: nothing moves"
    elif view.mode is not RebalanceMode.AUTO:
        reason, message = view.mode.value, f"spec.rebalance.mode is {view.mode.value}: weights stay as they are"
    elif view.stale and view.missing is not None:
        reason, message = "MetricsStale", f"nothing moves: {view.missing.reason}"
    elif view.missing is not None:
        reason, message = "Waiting", f"nothing moves: {view.missing.reason}"
    else:
        reason, message = "NoDemand", "no request has been measured yet"
    return ClassOutcome(view, view.weights, view.weights, False, "", reason, message)


def _recommended(view: ClassView, load: ClassLoad | None, answers: Answers) -> dict[str, int]:
    """What would be best for a class of mode Recommend."""
    if load is None or answers.recommended is None or view.mode is not RebalanceMode.RECOMMEND:
        return {}
    shares = answers.recommended.shares.get(view.key)
    return damping.whole_percents(shares, mix_of(view, load)) if shares and view.missing is None else {}


def _alive(load: ClassLoad, now: Problem) -> bool:
    tiers = [now.tiers[pair.tier] for pair in load.pairs]
    return any(tier.external or tier.max_replicas > 0 for tier in tiers)


def _cause(situation: Situation, view: ClassView, load: ClassLoad, now: Problem) -> _Cause | None:
    """Why the class has to move, whatever it costs; None when it does not have to."""
    lost = sorted(name for name in view.weights if not situation.tiers[name].usable)
    if lost:
        return _Cause("TierUnusable", f"{', '.join(lost)} can not take requests", severe=True)
    ratio, name = _overload(load, now)
    if ratio > OVERFLOW_FROM:
        breach = _breach(situation.tiers[name], view, situation.settings.max_age_seconds)
        if not now.tiers[name].max_replicas:
            return _Cause(OVERFLOW, f"{name} has no ready replica", severe=True)
        if breach:
            return _Cause(OVERFLOW, f"{breach}: the step limit does not hold", severe=True)
        text = f"{name} has {100 * ratio:.0f}% of the load that its ready replicas carry within the objective"
        return _Cause(OVERFLOW, text, severe=ratio > SEVERE)
    broken = problem.broken_for(load, load.current)
    if broken:
        return _Cause("ConstraintRestored", broken[0], severe=False)
    over = problem.limits_exceeded(now, {item.key: item.current for item in now.classes})
    hit = next((text for name, text in over.items() if load.current.get(name, 0.0) > 0), None)
    return _Cause("ProviderLimit", hit, severe=False) if hit is not None else None


def _ceiling(situation: Situation, view: ClassView, answers: Answers) -> _Cause | None:
    """A budget downgrades the class: what saves enough waits for the interval only."""
    if view.key not in situation.hold.downgraded or not answers.saves(view):
        return None
    return _Cause("CeilingKept", "a budget downgrades the class", severe=False)


def _overload(load: ClassLoad, now: Problem) -> tuple[float, str]:
    """The largest ratio of load to safe capacity of ready replicas among the tiers that the class uses, and which tier.

    Nearly all of the safe utilisation counts here: what is planned for bursts is there to be used while replicas start.
    """
    worst = (0.0, "")
    for pair in load.pairs:
        tier = now.tiers[pair.tier]
        if tier.external or pair.current <= 0 or load.rate <= 0:
            continue
        carried = sum(
            item.rate * other.current * other.utilisation
            for item in now.classes
            for other in item.pairs
            if other.tier == pair.tier
        )
        safe = max(pair.limit, 0.05) * tier.max_replicas
        worst = max(worst, (carried / safe if safe > 0 else 99.0, pair.tier))
    return worst


def _breach(tier: TierView, view: ClassView, max_age_seconds: float) -> str:
    """What is measured beyond the objective on a tier; empty when nothing is."""
    seen = tier.signals
    if seen is None:
        return ""
    ttft = value_of(seen.ttft_p95_seconds, max_age_seconds=max_age_seconds)
    between = capacity.inter_token_of_requests(seen, max_age_seconds=max_age_seconds)
    for what, value, bound in (
        ("time to first token", ttft, view.objective.ttft_seconds),
        ("inter-token time", between, view.objective.inter_token_seconds),
    ):
        if value is not None and bound is not None and value > bound:
            return f"p95 {what} on {tier.name} is {1000 * value:.0f} ms of {1000 * bound:.0f} ms (measured)"
    waiting = value_of(seen.waiting, max_age_seconds=max_age_seconds)
    running = value_of(seen.running, max_age_seconds=max_age_seconds)
    if waiting is not None and running is not None and waiting > max(tier.ready, 0.1 * running):
        return f"{waiting:.0f} requests queue on {tier.name} (measured)"
    return ""


def _why(view: ClassView, after: Mapping[str, int], cause: _Cause | None, answers: Answers) -> str:
    rate = view.demand.now if view.demand is not None else 0.0
    names = [ref.name for ref in view.spec.tiers if view.weights.get(ref.name, 0) != after.get(ref.name, 0)]
    path = ", ".join(f"{name} {view.weights.get(name, 0)}% -> {after.get(name, 0)}%" for name in names)
    text = f"{path} at {rate:.2f} requests/s (measured)"
    if cause is not None:
        return f"{text}: {cause.text}"
    text = f"{text}: estimated {answers.stay_cost:.2f} -> {answers.free.cost_per_hour:.2f} per hour for the namespace"
    if abs(answers.gain) < _CENT:
        return text
    what = "more" if answers.gain > 0 else "less"
    return f"{text}, and quality that is worth {abs(answers.gain):.2f} {what} where floors hold on average"
