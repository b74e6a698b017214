"""What was decided about a policy and why, in plain words: every figure with where it comes from, nothing made up."""

import json
import textwrap
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tierwise import yaml_text
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.routing_policy_status import Binding, ClassStatus, Decision, DecisionInput
from tierwise.core import promise
from tierwise.preview import explain_tiers
from tierwise.preview.explain_words import (
    WIDTH,
    condition,
    condition_document,
    figure,
    inputs_of,
    known,
    money_words,
    wrap,
)
from tierwise.preview.facts import Facts

MOST_EVENTS = 6

_BINDS = {
    Binding.NONE: "nothing but cost: this is the cheapest mix",
    Binding.OBJECTIVE: "the latency objective: a cheaper tier can not meet it",
    Binding.QUALITY_FLOOR: "the quality floor sets the mix",
    Binding.CEILING: "the budget's ceiling",
    Binding.CLEARANCE: "clearance: only one tier may see these requests (never lifted)",
    Binding.CAPACITY: "capacity: a cheaper tier is at its maximum of replicas",
    Binding.STEP: "the step limit: weights are on their way to what is wanted",
    Binding.LIMITS: "minWeight or maxWeight",
    Binding.STALE: "missing signals: nothing moves until they are back",
    Binding.MANUAL: "the mode, or suspend: only a person moves the weights",
}

_BURSTS = {
    True: "quality was earned: tiers below the floor too take what a saturated tier passes on",
    False: "nothing is left of the quality that was earned: tiers below the floor take nothing of a saturated tier",
}


def document(facts: Facts) -> dict[str, Any]:
    """Everything for programs: what is not known is absent."""
    policy, decision = facts.policy, facts.policy.status.decision
    ready = condition(policy.status.conditions, "Ready")
    return known(
        policy=f"{policy.metadata.namespace}/{policy.metadata.name}",
        source=facts.source,
        ready=condition_document(ready),
        conditions=[condition_document(one) for one in policy.status.conditions if one.type != "Ready"],
        models=list(policy.spec.models),
        mode=policy.spec.rebalance.mode.value,
        suspended=policy.spec.suspend or None,
        referenceTier=policy.spec.reference_tier,
        saving=policy.status.saving.dump() if policy.status.saving is not None else None,
        classes=[_class(facts, one.name) for one in policy.spec.classes],
        tiers=[explain_tiers.document(facts, name) for name in _tier_names(policy)],
        decision=_decision(decision),
        budgets=[_budget(name, budget) for name, budget in sorted(facts.budgets.items())],
        events=[
            {"time": one.time, "reason": one.reason, "about": one.about, "note": one.note}
            for one in (facts.events or ())[:MOST_EVENTS]
        ],
        notes=list(facts.notes),
    )


def _tier_names(policy: RoutingPolicy) -> list[str]:
    return sorted({ref.name for one in policy.spec.classes for ref in one.tiers})


def _class(facts: Facts, name: str) -> dict[str, Any]:
    policy, decision = facts.policy, facts.policy.status.decision
    spec = policy.spec.routing_class(name)
    status = next((one for one in policy.status.classes if one.name == name), None)
    seen = inputs_of(decision, f"class/{name}/")
    return known(
        name=name,
        sensitivity=status.sensitivity.value if status is not None and status.sensitivity is not None else None,
        objective=spec.objective.dump() if spec is not None and spec.objective is not None else None,
        quality=_floor(spec),
        demand=figure(seen.get("requestsPerSecond")),
        plannedDemand=figure(seen.get("plannedRequestsPerSecond")),
        promptTokens=figure(seen.get("promptTokens")),
        completionTokens=figure(seen.get("completionTokens")),
        tokenCostPerHour=_token_cost(facts, status, seen),
        weights=[
            known(tier=one.tier, percent=one.percent, wanted=one.wanted if one.wanted != one.percent else None)
            for one in (status.weights if status is not None else ())
        ],
        relievedBelowFloor=status.relieved_below_floor if status is not None else None,
        binding=_binding(status, decision),
        withoutIt=_lifted(policy, decision, name),
        reason=status.reason if status is not None else None,
        message=status.message if status is not None else None,
        since=_time(status.last_move_time) if status is not None else None,
    )


def _binding(status: ClassStatus | None, decision: Decision | None) -> str | None:
    """What binds; once all weights have arrived it is no longer the step limit, but what the decision says."""
    if status is None or status.binding is None:
        return None
    arrived = all(one.wanted in {None, one.percent} for one in status.weights)
    if status.binding is Binding.STEP and arrived and decision is not None:
        found = next((one.binding for one in decision.bindings if one.name == status.name), None)
        return (found or status.binding).value
    return status.binding.value


def _time(moment: Any) -> str | None:  # noqa: ANN401 - datetime or None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment is not None else None


def _token_cost(facts: Facts, status: ClassStatus | None, seen: Mapping[str, DecisionInput]) -> dict[str, Any] | None:
    """What the class pays providers per hour, at the decision's demand and the present weights; replicas are shared."""
    rate, prompt, completion = (
        one.value if (one := seen.get(key)) is not None else None
        for key in ("requestsPerSecond", "promptTokens", "completionTokens")
    )
    if status is None or rate is None or prompt is None or completion is None:
        return None
    total, currency = Decimal(0), None
    for weight in status.weights:
        tier = facts.tiers.get(weight.tier)
        outside = tier.spec.external if tier is not None else None
        if outside is None or not weight.percent:
            continue
        if outside.price is None:
            return None
        price = outside.price
        each = prompt * price.input_per_million_tokens + completion * price.output_per_million_tokens
        total += 3600 * rate * weight.percent / 100 * each / 1_000_000
        currency = price.currency
    return known(value=str(round(total, 2)), currency=currency, provenance="Estimated") if currency else None


def _lifted(policy: RoutingPolicy, decision: Decision | None, name: str) -> dict[str, Any] | None:
    """What the namespace would save without the constraint that binds the class."""
    if decision is None or decision.expected_cost_per_hour is None:
        return None
    suffix = f" of {policy.metadata.name}/{name}"
    found = next(
        (one for one in decision.options if one.name.startswith("without ") and one.name.endswith(suffix)), None
    )
    if found is None or found.cost_per_hour is None:
        return None
    return known(
        constraint=found.name.removeprefix("without ").removesuffix(suffix),
        savesPerHour=str(max(Decimal(0), decision.expected_cost_per_hour - found.cost_per_hour)),
        currency=decision.currency,
        breaks=found.reason,
        provenance="Estimated",
    )


def _decision(one: Decision | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return known(**{key: value for key, value in one.dump().items() if key != "inputs"}) | known(
        inputs=[each.dump() for each in one.inputs]
    )


def _budget(name: str, budget: NamespaceBudget) -> dict[str, Any]:
    status = budget.status
    return known(
        name=name,
        ceiling=str(budget.spec.ceiling),
        currency=budget.spec.currency,
        period=budget.spec.period.value,
        spent=str(status.spent) if status.spent is not None else None,
        forecast=str(status.forecast) if status.forecast is not None else None,
        rung=status.rung.dump() if status.rung is not None else None,
    )


def serialised(facts: Facts, form: str) -> str:
    """As JSON or YAML."""
    value = json.loads(json.dumps(document(facts), default=str))
    if form == "json":
        return json.dumps(value, indent=2) + "\n"
    return yaml_text.dump(value, width=WIDTH)


def text(facts: Facts) -> str:
    """In plain words."""
    found = document(facts)
    blocks = [_head(facts, found)]
    blocks += [_class_words(one, found) for one in found.get("classes", ())]
    blocks.append(explain_tiers.text(found))
    blocks.append(_decision_words(found))
    blocks.append(_budget_words(found))
    blocks.append(_event_words(facts, found))
    blocks += [f"Note: {note}" for note in facts.notes]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _head(facts: Facts, found: Mapping[str, Any]) -> str:
    ready = found.get("ready")
    lines = [f"RoutingPolicy {found['policy']}, as {facts.source} shows it"]
    if ready is None:
        lines.append(wrap("state", "no operator has looked at it yet: there is no status"))
    else:
        word = "Ready" if ready["status"] == "True" else "not Ready"
        since = f" since {ready['since']}"
        lines.append(wrap("state", f"{word}{since} ({ready['reason']}): {ready.get('message', '')}"))
    lines += [
        wrap(one["type"], f"{one['status']} since {one['since']} ({one['reason']}): {one.get('message', '')}")
        for one in found.get("conditions", ())
    ]
    called = ", ".join(found.get("models", ())) or "by hostname only"
    mode = found["mode"] + (", suspended" if found.get("suspended") else "")
    lines.append(wrap("models", f"{called}; mode {mode}"))
    saving = found.get("saving")
    if saving is not None:
        cost, reference = saving.get("costPerHour"), saving.get("referenceCostPerHour")
        words = f"{money_words(cost)} {saving['currency']} per hour, "
        words += f"{money_words(reference)} with everything on {found.get('referenceTier')}"
        lines.append(wrap("cost", f"{words}: {saving.get('factor')} times cheaper ({saving['provenance'].lower()})"))
    return "\n".join(lines)


def _amount(figure: Mapping[str, Any] | None, unit: str) -> str:
    if figure is None:
        return "unknown"
    source = str(figure.get("provenance", "")).lower()
    age = figure.get("ageSeconds")
    return f"{figure['value']} {unit} ({source}{f', {age} s old when decided' if age is not None else ''})"


def _floor(spec: RoutingClass | None) -> dict[str, Any] | None:
    """The floor as it is written; that it holds always goes without saying."""
    if spec is None or spec.quality is None:
        return None
    found = spec.quality.dump()
    return found if promise.on_average(spec) else {key: value for key, value in found.items() if key != "holds"}


def _class_words(one: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    del found
    lines = [f"Class {one['name']}" + (f" ({one['sensitivity']})" if "sensitivity" in one else "")]
    promises = [f"{key} {value}" for part in ("objective", "quality") for key, value in (one.get(part) or {}).items()]
    lines.append(wrap("promised", ", ".join(promises) or "nothing: no objective, no floor"))
    demand = _amount(one.get("demand"), "requests/s")
    if one.get("plannedDemand"):
        demand += f"; planned for {_amount(one['plannedDemand'], 'requests/s')}"
    lines.append(wrap("demand", demand))
    prompt, completion = one.get("promptTokens"), one.get("completionTokens")
    if prompt and completion:
        source = str(prompt.get("provenance", "")).lower()
        source = "assumed: no usage reported yet" if source == "declared" else source
        lines.append(wrap("tokens", f"{prompt['value']} in and {completion['value']} out per request ({source})"))
    weights = [
        f"{w['tier']} {w['percent']}%" + (f" (wanted {w['wanted']}%)" if "wanted" in w else "")
        for w in one.get("weights", ())
    ]
    lines.append(wrap("weights", (", ".join(weights) or "none yet") + _since(one)))
    tokens = one.get("tokenCostPerHour")
    if tokens is not None:
        lines.append(wrap("tokens cost", f"{tokens['value']} {tokens['currency']} per hour at providers (estimated)"))
    if "relievedBelowFloor" in one:
        lines.append(wrap("bursts", _BURSTS[one["relievedBelowFloor"]]))
    if "binding" in one:
        lines.append(wrap("binds", _binds(one)))
    if "message" in one:
        lines.append(wrap("why", f"{one.get('reason')}: {one['message']}"))
    return "\n".join(lines)


def _since(one: Mapping[str, Any]) -> str:
    return f", since {one['since']}" if "since" in one else ""


def _binds(one: Mapping[str, Any]) -> str:
    words = _BINDS[Binding(one["binding"])]
    lifted = one.get("withoutIt")
    if lifted is None:
        return words
    saves = f"without {lifted['constraint']} the namespace would save {lifted['savesPerHour']} "
    saves += f"{lifted.get('currency', '')} per hour (estimated)"
    return f"{words}; {saves}" + (f", and {lifted['breaks']}" if "breaks" in lifted else "")


def _decision_words(found: Mapping[str, Any]) -> str:
    one = found.get("decision")
    if one is None:
        return "Last decision\n" + wrap("", "none: nothing has moved yet").replace(" " * 15, "", 1)
    money = one.get("currency", "")
    lines = [f"Last decision, {one['time']} ({one['id']})", wrap("what", f"{one['reason']}: {one['message']}")]
    if "expectedCostPerHour" in one:
        words = f"{money_words(one['costBeforePerHour'])} -> {money_words(one['expectedCostPerHour'])} {money} per hour"
        words += " for the namespace"
        lines.append(wrap("expected", f"{words}: saves {one.get('expectedSavingPercent', '?')}% (estimated)"))
    real = one.get("realised")
    if real is not None:
        words = f"{money_words(real['costPerHour'])} {money} per hour over {real['seconds']} s"
        words += f" at {real.get('requestsPerSecond', '?')}"
        words += " requests/s (measured)"
        if "savingPercent" in real:
            words += f": saved {real['savingPercent']}% against what it would have cost before (estimated)"
        else:
            words += "; demand was another one than when it was decided: no saving can be told"
        lines.append(wrap("realised", words))
    elif "expectedCostPerHour" in one:
        lines.append(wrap("realised", "not known: the window is not over, or something moved before it was"))
    lines += [wrap("gave way", words) for words in one.get("relaxed", ())]
    options = one.get("options", ())
    if options:
        lines.append("  options        cost per hour of the namespace (estimated)")
        width = max(len(option["name"]) for option in options)
        for option in options:
            why = option.get("reason", "holds" if option["feasible"] else "")
            lead = f"    {option['name']:<{width}} {money_words(option.get('costPerHour')):>10}  "
            lines.append(
                textwrap.fill(why, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
                if why
                else lead.rstrip()
            )
    return "\n".join(lines)


def _budget_words(found: Mapping[str, Any]) -> str:
    budgets = found.get("budgets", ())
    if not budgets:
        return ""
    lines = ["Budgets of the namespace"]
    for one in budgets:
        spent = f"{money_words(one['spent'])} spent" if "spent" in one else "spend unknown"
        ahead = f", {money_words(one['forecast'])} expected at the end (estimated)" if "forecast" in one else ""
        rung = f", {one['rung'].get('action')} holds" if "rung" in one else ""
        words = f"{spent} of {money_words(one['ceiling'])} {one['currency']} per {one['period']}{ahead}{rung}"
        lines.append(wrap(one["name"], words))
    return "\n".join(lines)


def _event_words(facts: Facts, found: Mapping[str, Any]) -> str:
    if facts.events is None:
        return ""
    events = found.get("events", ())
    lines = ["What happened last"] if events else ["What happened last", "  no events are kept"]
    for one in events:
        lead = f"  {one['time'][:19]}  {one['about']} {one['reason']}: "
        lines.append(textwrap.fill(lead + one["note"], WIDTH, subsequent_indent=" " * 6))
    return "\n".join(lines)
