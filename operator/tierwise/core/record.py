"""The record of a decision: bounded in the policy's status, whole in the operator's log.

What it rested on, what else was weighed and why not, what bound each class, what gave way, and what it is expected to
save. What it then did save is added once it was measured (`realised`).
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tierwise.api.meta import Provenance
from tierwise.api.routing_policy_status import Binding, ClassBinding, DecisionInput, DecisionOption, Realised
from tierwise.api.routing_policy_status import Decision as DecisionStatus
from tierwise.core import realised, tier_status
from tierwise.core.decision import ClassOutcome, Decision, TierOutcome
from tierwise.core.digest import digest
from tierwise.core.memory import Realising
from tierwise.core.problem import Option
from tierwise.core.signals import Reading
from tierwise.core.situation import ClassView, Situation, TierView

MAX_INPUTS, MAX_OPTIONS, MAX_LIST = 64, 16, 16
"""Bounds of what a status holds; the log has all of it."""


def status(
    situation: Situation, decision: Decision, outcomes: list[ClassOutcome], bindings: Mapping[str, Binding]
) -> DecisionStatus:
    """The record of a decision that moved something of a policy.

    Args:
        situation: that it was made in.
        decision: about the namespace.
        outcomes: of the policy's classes.
        bindings: the solver's words -> the API's.
    """
    moved = [outcome for outcome in outcomes if outcome.moved]
    used = sorted({name for outcome in outcomes for name in outcome.view.allowed})
    scaled = [decision.tiers[name] for name in used if name in decision.tiers and decision.tiers[name].moved]
    parts = [f"class {o.view.spec.name}: {o.message}" for o in moved]
    parts += [f"tier {t.view.name}: {t.message}" for t in scaled]
    found = inputs(situation, [outcome.view for outcome in outcomes], used)[:MAX_INPUTS]
    options = tuple(_option(option) for option in decision.options[-MAX_OPTIONS:])
    before, after = decision.stay_cost_per_hour, decision.cost_per_hour
    solution = decision.solution
    return DecisionStatus(
        id=identity(found, options, parts),
        time=situation.now.replace(microsecond=0),
        reason=moved[0].reason if moved else "ReplicasMoved",
        message="; ".join(parts)[:2048],
        inputs=found,
        options=options,
        bindings=tuple(
            ClassBinding(name=o.view.spec.name, binding=bindings.get(o.binding, Binding.NONE)) for o in outcomes
        )[:MAX_LIST],
        relaxed=tuple(f"{one.kind}: {one.subject}" for one in solution.relaxed)[:MAX_LIST] if solution else (),
        currency=realised.cost_currency(situation),
        cost_before_per_hour=_cents(before),
        expected_cost_per_hour=_cents(after),
        expected_saving_percent=Decimal(f"{100 * (1 - after / before):.1f}") if after is not None and before else None,
    )


def identity(*parts: object) -> str:
    """What identifies a decision in events and logs."""
    return digest(repr(parts).encode())


def _option(option: Option) -> DecisionOption:
    return DecisionOption(
        name=option.name[:128],
        cost_per_hour=_cents(option.cost_per_hour),
        feasible=option.feasible,
        reason=(option.why_not[:512] or None) if option.name != "chosen" else "the cheapest that holds",
    )


def _cents(value: float | None) -> Decimal | None:
    return Decimal(f"{value:.2f}") if value is not None else None


def with_realised(shown: DecisionStatus | None, window: Realising | None) -> DecisionStatus | None:
    """The record that is shown, with what was measured after it once that is known; written once."""
    if shown is None or window is None or shown.realised is not None or not window.finished:
        return shown
    if shown.time != window.decided.replace(microsecond=0):
        return shown
    found = realised.outcome(window)
    if not found:
        return shown
    saving = found.get("saving_percent")
    return shown.model_copy(
        update={
            "realised": Realised(
                cost_per_hour=Decimal(f"{found['cost_per_hour']:.2f}"),
                requests_per_second=Decimal(f"{found['requests_per_second']:.2f}"),
                saving_percent=Decimal(f"{saving:.1f}") if saving is not None else None,
                seconds=round(found["seconds"]),
                provenance=Provenance.MEASURED,
            )
        }
    )


def inputs(situation: Situation, views: Iterable[ClassView], tiers: Iterable[str]) -> tuple[DecisionInput, ...]:
    """The figures that a decision rests on, of these classes and tiers: demand first, as a status may cut the end."""
    found: list[DecisionInput] = []
    later: list[DecisionInput] = []
    for view in views:
        samples = view.memory.history.samples
        age = int((situation.now - samples[-1][0]).total_seconds()) if samples else None
        name, demand = f"class/{view.spec.name}", view.demand
        now = Decimal(f"{demand.now:.3f}") if demand is not None else None
        found.append(_input(f"{name}/requestsPerSecond", now, Provenance.MEASURED, age))
        if demand is None:
            continue
        ahead = Decimal(f"{demand.ahead:.3f}")
        found.append(_input(f"{name}/plannedRequestsPerSecond", ahead, Provenance.ESTIMATED))
        source = Provenance.MEASURED if demand.tokens_known else Provenance.DECLARED
        for what, tokens in zip(("promptTokens", "completionTokens"), demand.tokens_on(""), strict=True):
            later.append(_input(f"{name}/{what}", Decimal(f"{tokens:.0f}"), source))
    for tier in tiers:
        found += _of_tier(situation, situation.tiers[tier])
        later += _prices(situation.tiers[tier])
    return (*found, *later)


def _of_tier(situation: Situation, view: TierView) -> list[DecisionInput]:
    if view.capacity is None:
        return []
    rate = Decimal(f"{tier_status.safe_rate(situation, view, view.capacity):.3f}")
    source = Provenance(view.capacity.provenance.capitalize())
    return [
        _input(f"tier/{view.name}/requestsPerSecondPerReplica", rate, source),
        _input(f"tier/{view.name}/readyReplicas", Decimal(view.ready), Provenance.MEASURED),
        *_passed(situation, view),
    ]


def _passed(situation: Situation, view: TierView) -> list[DecisionInput]:
    """What a saturated tier passed on, where that is known and some class is relieved of it."""
    if view.signals is None or not any(view.name in each.relieved for each in situation.classes):
        return []
    passed = view.signals.passed_rate
    if not isinstance(passed, Reading) or passed.age_seconds > situation.settings.max_age_seconds:
        return []
    rate = Decimal(f"{passed.value:.3f}")
    return [_input(f"tier/{view.name}/passedOnPerSecond", rate, Provenance.MEASURED, round(passed.age_seconds))]


def _prices(view: TierView) -> list[DecisionInput]:
    name, outside = f"tier/{view.name}", view.tier.spec.external
    if outside is None:
        return [_input(f"{name}/pricePerReplicaHour", view.price_per_hour, Provenance.DECLARED)]
    price = outside.price
    return [
        _input(f"{name}/{what}", value, Provenance.DECLARED)
        for what, value in (
            ("inputPerMillionTokens", price.input_per_million_tokens if price is not None else None),
            ("outputPerMillionTokens", price.output_per_million_tokens if price is not None else None),
        )
    ]


def _input(name: str, value: Decimal | None, source: Provenance, age: int | None = None) -> DecisionInput:
    return DecisionInput(name=name[:128], value=value, provenance=source, age_seconds=age)


def whole(situation: Situation, decision: Decision) -> dict[str, Any]:
    """The record for the log: all classes and tiers of the namespace, nothing cut. JSON values only."""
    found = inputs(situation, situation.classes, sorted(situation.tiers))
    solution = decision.solution
    return {
        "record": "decision",
        "namespace": situation.namespace,
        "id": identity(situation.now, found),
        "time": situation.now.isoformat(),
        "classes": [_class(outcome) for outcome in decision.classes.values()],
        "tiers": [_tier(outcome) for _, outcome in sorted(decision.tiers.items())],
        "inputs": [one.dump() for one in found],
        "options": [_whole_option(option) for option in decision.options],
        "relaxed": [f"{one.kind}: {one.subject}" for one in solution.relaxed] if solution is not None else [],
        "solver": solution.status if solution is not None else None,
        "currency": realised.cost_currency(situation),
        "cost_before_per_hour": decision.stay_cost_per_hour,
        "expected_cost_per_hour": decision.cost_per_hour,
    }


def _class(outcome: ClassOutcome) -> dict[str, Any]:
    return {
        "policy": outcome.view.key[1],
        "class": outcome.view.key[2],
        "moved": outcome.moved,
        "reason": outcome.reason,
        "message": outcome.message,
        "binding": outcome.binding or None,
        "before": dict(outcome.view.weights),
        "weights": dict(outcome.weights),
        "wanted": dict(outcome.wanted),
    }


def _tier(outcome: TierOutcome) -> dict[str, Any]:
    return {
        "tier": outcome.view.name,
        "moved": outcome.moved,
        "before": outcome.view.planned,
        "planned": outcome.planned,
        "bounds": [outcome.bounds.min, outcome.bounds.max],
        "message": outcome.message or None,
    }


def _whole_option(option: Option) -> dict[str, Any]:
    return {
        "name": option.name,
        "cost_per_hour": round(option.cost_per_hour, 4),
        "replicas": dict(option.replicas),
        "why_not": option.why_not or None,
    }


def measured(namespace: str, window: Realising) -> dict[str, Any]:
    """The record for the log once it is known what a decision really cost."""
    return {
        "record": "realised",
        "namespace": namespace,
        "decided": window.decided.isoformat(),
        "currency": window.currency,
        "cost_before_per_hour": window.before_per_hour,
        "expected_cost_per_hour": window.expected_per_hour,
        "requests_per_second_then": window.demand,
        **realised.outcome(window),
    }
