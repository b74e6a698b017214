"""A preview as one JSON or YAML document, for programs."""

import json
from typing import Any

from tierwise import yaml_text
from tierwise.preview.climb import Climb
from tierwise.preview.diff import Change
from tierwise.preview.estimate import HOURS_PER_MONTH, Amount, BudgetEstimate, NamespaceEstimate
from tierwise.preview.preview import Preview


def document(found: Preview) -> dict[str, Any]:
    """The preview for programs. Unknown figures are absent; money is in decimal strings."""
    return {
        "against": found.against,
        "metrics": found.metrics or None,
        "changed": found.changed,
        "problems": [
            _known(where=p.where, object=p.what, field=p.field, value=p.value, remedy=p.remedy) for p in found.problems
        ],
        "notes": list(found.notes),
        "objects": [_change(each) for each in found.objects],
        "children": [_change(each) for each in found.children],
        "envoy": [_change(each) for each in found.envoy],
        "routes": {name: {"before": list(a), "after": list(b)} for name, (a, b) in sorted(found.routes.items())},
        "estimate": {
            name: {
                "before": _estimate(found.before[name]) if name in found.before else None,
                "after": _estimate(found.after[name]) if name in found.after else None,
            }
            for name in sorted({*found.before, *found.after})
        },
    }


def _known(**values: object) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", [], ())}


def _change(each: Change) -> dict[str, Any]:
    return _known(
        action=each.action,
        kind=each.kind,
        namespace=each.namespace,
        name=each.name,
        where=each.where,
        diff=list(each.lines) if each.action == "change" else None,
    )


def _amount(amount: Amount) -> dict[str, Any]:
    return _known(
        perHour=str(round(amount.value, 4)),
        perMonth=str(round(amount.value * HOURS_PER_MONTH, 2)),
        lowerBound=not amount.whole or None,
        missing=list(amount.missing),
    )


def _estimate(each: NamespaceEstimate) -> dict[str, Any]:
    return {
        "provenance": "Estimated",
        "steady": each.steady,
        "costs": {currency: _amount(amount) for currency, amount in sorted(each.costs.items())},
        "tiers": [
            _known(
                name=tier.name,
                replicas=tier.replicas,
                maxReplicas=tier.most,
                costPerHour=str(round(tier.cost_per_hour, 4)) if tier.cost_per_hour is not None else None,
                currency=tier.currency,
                lowerBound=(tier.why or None) if tier.cost_per_hour is not None else None,
                unknownBecause=(tier.why or "no price") if tier.cost_per_hour is None else None,
                utilisation=round(tier.utilisation, 3) if tier.utilisation is not None else None,
                capacity=tier.capacity,
            )
            for tier in each.tiers
        ],
        "classes": [
            _known(
                policy=one.policy,
                name=one.name,
                weights=dict(one.weights),
                requestsPerSecond=one.load.mean if one.load is not None else None,
                objective=one.objective,
                attainment=round(one.attainment, 4) if one.attainment is not None else None,
                basis=one.basis,
                binding=one.binding,
                reason=one.reason,
            )
            for one in each.classes
        ],
        "budgets": [_budget_document(one) for one in each.budgets],
    }


def _budget_document(one: BudgetEstimate) -> dict[str, Any]:
    cost = one.period_cost
    return _known(
        name=one.name,
        ceiling=str(one.ceiling),
        currency=one.currency,
        period=one.period,
        periodCost=str(round(cost.value, 2)) if cost is not None else None,
        lowerBound=True if cost is not None and not cost.whole else None,
        percentOfCeiling=str(round(one.percent, 1)) if one.percent is not None else None,
        fits=one.percent <= 100 if one.percent is not None and (one.percent > 100 or (cost and cost.whole)) else None,
        rungs=_rungs(one.whole) if one.whole is not None else [_known(atPercent=p, action=a) for p, a in one.ladder],
        wholePeriod=_climb(one.whole) if one.whole is not None else None,
        presentPeriod={**_climb(one.present), "rungs": _rungs(one.present)} if one.present is not None else None,
        unpriced=[{"policy": policy, "class": name, "tier": tier} for policy, name, tier in one.unpriced],
        spent=str(one.spent) if one.spent is not None else None,
    )


def _climb(found: Climb) -> dict[str, Any]:
    return {
        "from": found.start.isoformat(timespec="minutes"),
        "until": found.end.isoformat(timespec="minutes"),
        "timeZone": str(found.end.tzinfo),
        "spentBefore": str(round(found.spent, 2)),
        "spentAtEnd": str(round(found.total, 2)),
    }


def _rungs(found: Climb) -> list[dict[str, Any]]:
    """Every rung; those that are not reached have no time."""
    return [
        _known(
            atPercent=step.percent,
            action=step.action.value,
            afterHours=str(round(step.hours, 1)) if step.hours is not None else None,
            at=step.at.isoformat(timespec="minutes") if step.at is not None else None,
            does=step.does,
            costPerHour=str(round(step.per_hour, 4)) if step.per_hour is not None else None,
            requestsPerSecond=step.passes,
        )
        for step in found.steps
    ]


def serialised(found: Preview, form: str) -> str:
    """As JSON or YAML."""
    value = document(found)
    if form == "json":
        return json.dumps(value, indent=2) + "\n"
    return yaml_text.dump(json.loads(json.dumps(value)))
