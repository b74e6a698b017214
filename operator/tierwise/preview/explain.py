"""What was decided about a policy and why, in plain words: every figure with where it comes from, nothing made up."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tierwise import yaml_text
from tierwise.api.meta import Condition
from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_class import RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.routing_policy_status import Binding, ClassStatus, Decision, DecisionInput
from tierwise.core import promise
from tierwise.preview.facts import Facts

WIDTH = 110
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


def document(facts: Facts) -> dict[str, Any]:
    """Everything for programs: what is not known is absent."""
    policy, decision = facts.policy, facts.policy.status.decision
    ready = _condition(policy.status.conditions, "Ready")
    return _known(
        policy=f"{policy.metadata.namespace}/{policy.metadata.name}",
        source=facts.source,
        ready=_condition_document(ready),
        conditions=[_condition_document(one) for one in policy.status.conditions if one.type != "Ready"],
        models=list(policy.spec.models),
        mode=policy.spec.rebalance.mode.value,
        suspended=policy.spec.suspend or None,
        referenceTier=policy.spec.reference_tier,
        saving=policy.status.saving.dump() if policy.status.saving is not None else None,
        classes=[_class(facts, one.name) for one in policy.spec.classes],
        tiers=[_tier(facts, name) for name in _tier_names(policy)],
        decision=_decision(decision),
        budgets=[_budget(name, budget) for name, budget in sorted(facts.budgets.items())],
        events=[
            {"time": one.time, "reason": one.reason, "about": one.about, "note": one.note}
            for one in (facts.events or ())[:MOST_EVENTS]
        ],
        notes=list(facts.notes),
    )


def _known(**values: object) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", [], {}, ())}


def _condition(conditions: Sequence[Condition], name: str) -> Condition | None:
    return next((one for one in conditions if one.type == name), None)


def _condition_document(one: Condition | None) -> dict[str, Any] | None:
    if one is None:
        return None
    since = one.last_transition_time.strftime("%Y-%m-%dT%H:%M:%SZ")
    return _known(type=one.type, status=one.status.value, reason=one.reason, message=one.message, since=since)


def _tier_names(policy: RoutingPolicy) -> list[str]:
    return sorted({ref.name for one in policy.spec.classes for ref in one.tiers})


def _inputs(decision: Decision | None, prefix: str) -> dict[str, DecisionInput]:
    if decision is None:
        return {}
    return {one.name.removeprefix(prefix): one for one in decision.inputs if one.name.startswith(prefix)}


def _figure(one: DecisionInput | None) -> dict[str, Any] | None:
    if one is None or one.value is None:
        return None
    return _known(
        value=f"{one.value:f}", provenance=one.provenance.value if one.provenance else None, ageSeconds=one.age_seconds
    )


def _class(facts: Facts, name: str) -> dict[str, Any]:
    policy, decision = facts.policy, facts.policy.status.decision
    spec = policy.spec.routing_class(name)
    status = next((one for one in policy.status.classes if one.name == name), None)
    seen = _inputs(decision, f"class/{name}/")
    return _known(
        name=name,
        sensitivity=status.sensitivity.value if status is not None and status.sensitivity is not None else None,
        objective=spec.objective.dump() if spec is not None and spec.objective is not None else None,
        quality=_floor(spec),
        demand=_figure(seen.get("requestsPerSecond")),
        plannedDemand=_figure(seen.get("plannedRequestsPerSecond")),
        promptTokens=_figure(seen.get("promptTokens")),
        completionTokens=_figure(seen.get("completionTokens")),
        tokenCostPerHour=_token_cost(facts, status, seen),
        weights=[
            _known(tier=one.tier, percent=one.percent, wanted=one.wanted if one.wanted != one.percent else None)
            for one in (status.weights if status is not None else ())
        ],
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
    return _known(value=str(round(total, 2)), currency=currency, provenance="Estimated") if currency else None


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
    return _known(
        constraint=found.name.removeprefix("without ").removesuffix(suffix),
        savesPerHour=str(max(Decimal(0), decision.expected_cost_per_hour - found.cost_per_hour)),
        currency=decision.currency,
        breaks=found.reason,
        provenance="Estimated",
    )


def _tier(facts: Facts, name: str) -> dict[str, Any]:
    tier = facts.tiers.get(name)
    if tier is None:
        return {"name": name, "missing": True}
    status = tier.status
    ready = _condition(status.conditions, "Ready")
    moved = next(
        (one for one in facts.events or () if one.about == f"ModelTier {name}" and one.reason == "ReplicasMoved"), None
    )
    return _known(
        name=name,
        kind="inCluster" if tier.spec.in_cluster is not None else "external",
        ready=_condition_document(ready),
        replicas=status.replicas.dump() if status.replicas is not None else None,
        capacity=status.capacity.dump() if status.capacity is not None else None,
        latency=status.latency.dump() if status.latency is not None else None,
        cost=status.cost.dump() if status.cost is not None else None,
        price=_price(tier),
        lastMove=_known(time=moved.time, note=moved.note) if moved is not None else None,
    )


def _price(tier: ModelTier) -> dict[str, Any] | None:
    inside, outside = tier.spec.in_cluster, tier.spec.external
    found = inside.price if inside is not None else outside.price if outside is not None else None
    return {**found.dump(), "provenance": "Declared"} if found is not None else None


def _decision(one: Decision | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return _known(**{key: value for key, value in one.dump().items() if key != "inputs"}) | _known(
        inputs=[each.dump() for each in one.inputs]
    )


def _budget(name: str, budget: NamespaceBudget) -> dict[str, Any]:
    status = budget.status
    return _known(
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
    blocks.append(_tiers_words(found))
    blocks.append(_decision_words(found))
    blocks.append(_budget_words(found))
    blocks.append(_event_words(facts, found))
    blocks += [f"Note: {note}" for note in facts.notes]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _wrap(label: str, words: str, indent: int = 2) -> str:
    lead = f"{' ' * indent}{label:<15}"
    return textwrap.fill(words, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False)


def _money(value: object) -> str:
    return f"{Decimal(str(value)):,.2f}" if value is not None else "unknown"


def _head(facts: Facts, found: Mapping[str, Any]) -> str:
    ready = found.get("ready")
    lines = [f"RoutingPolicy {found['policy']}, as {facts.source} shows it"]
    if ready is None:
        lines.append(_wrap("state", "no operator has looked at it yet: there is no status"))
    else:
        word = "Ready" if ready["status"] == "True" else "not Ready"
        since = f" since {ready['since']}"
        lines.append(_wrap("state", f"{word}{since} ({ready['reason']}): {ready.get('message', '')}"))
    lines += [
        _wrap(one["type"], f"{one['status']} since {one['since']} ({one['reason']}): {one.get('message', '')}")
        for one in found.get("conditions", ())
    ]
    called = ", ".join(found.get("models", ())) or "by hostname only"
    mode = found["mode"] + (", suspended" if found.get("suspended") else "")
    lines.append(_wrap("models", f"{called}; mode {mode}"))
    saving = found.get("saving")
    if saving is not None:
        cost, reference = saving.get("costPerHour"), saving.get("referenceCostPerHour")
        words = f"{_money(cost)} {saving['currency']} per hour, "
        words += f"{_money(reference)} with everything on {found.get('referenceTier')}"
        lines.append(_wrap("cost", f"{words}: {saving.get('factor')} times cheaper ({saving['provenance'].lower()})"))
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
    lines.append(_wrap("promised", ", ".join(promises) or "nothing: no objective, no floor"))
    demand = _amount(one.get("demand"), "requests/s")
    if one.get("plannedDemand"):
        demand += f"; planned for {_amount(one['plannedDemand'], 'requests/s')}"
    lines.append(_wrap("demand", demand))
    prompt, completion = one.get("promptTokens"), one.get("completionTokens")
    if prompt and completion:
        source = str(prompt.get("provenance", "")).lower()
        source = "assumed: no usage reported yet" if source == "declared" else source
        lines.append(_wrap("tokens", f"{prompt['value']} in and {completion['value']} out per request ({source})"))
    weights = [
        f"{w['tier']} {w['percent']}%" + (f" (wanted {w['wanted']}%)" if "wanted" in w else "")
        for w in one.get("weights", ())
    ]
    lines.append(_wrap("weights", (", ".join(weights) or "none yet") + _since(one)))
    tokens = one.get("tokenCostPerHour")
    if tokens is not None:
        lines.append(_wrap("tokens cost", f"{tokens['value']} {tokens['currency']} per hour at providers (estimated)"))
    if "binding" in one:
        lines.append(_wrap("binds", _binds(one)))
    if "message" in one:
        lines.append(_wrap("why", f"{one.get('reason')}: {one['message']}"))
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


def _tiers_words(found: Mapping[str, Any]) -> str:
    lines = ["Tiers"]
    for one in found.get("tiers", ()):
        if one.get("missing"):
            lines.append(_wrap(one["name"], "does not exist"))
            continue
        lines.append(_wrap(one["name"], "; ".join(_tier_parts(one))))
    return "\n".join(lines)


def _tier_parts(one: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    replicas = one.get("replicas")
    if replicas is not None:
        bounds = f", autoscaler {replicas.get('min', '?')} to {replicas.get('max', '?')}"
        parts.append(f"{replicas.get('ready', 0)} of {replicas.get('current', 0)} replicas ready{bounds} (measured)")
    elif one["kind"] == "external":
        parts.append("paid per token")
    ready = one.get("ready")
    if ready is not None and ready["status"] != "True":
        parts.append(f"not Ready: {ready['reason']}")
    capacity = one.get("capacity")
    if capacity is not None and "requestsPerSecond" in capacity:
        parts.append(f"{capacity['requestsPerSecond']} requests/s each ({capacity['provenance'].lower()})")
        if "concurrentRequests" in capacity:
            parts.append(f"gateways give each at most {capacity['concurrentRequests']} requests at a time (estimated)")
    latency = one.get("latency")
    if latency is not None:
        values = [f"{name} {latency[key]}" for key, name in _LATENCIES if key in latency]
        parts.append(f"p95 {', '.join(values)} ({latency['provenance'].lower()})")
    cost = one.get("cost")
    if cost is not None and "perHour" in cost:
        source = cost["provenance"].lower()
        parts.append(f"{_money(cost['perHour'])} {cost['currency']} per hour ({source}, at the last decision)")
    elif "price" not in one:
        parts.append("no price: its cost is unknown")
    if "lastMove" in one:
        parts.append(f"last moved {one['lastMove']['time']}: {one['lastMove']['note']}")
    return parts


_LATENCIES = (("ttftP95", "time to first token"), ("interTokenP95", "inter-token"))


def _decision_words(found: Mapping[str, Any]) -> str:
    one = found.get("decision")
    if one is None:
        return "Last decision\n" + _wrap("", "none: nothing has moved yet").replace(" " * 15, "", 1)
    money = one.get("currency", "")
    lines = [f"Last decision, {one['time']} ({one['id']})", _wrap("what", f"{one['reason']}: {one['message']}")]
    if "expectedCostPerHour" in one:
        words = f"{_money(one['costBeforePerHour'])} -> {_money(one['expectedCostPerHour'])} {money} per hour"
        words += " for the namespace"
        lines.append(_wrap("expected", f"{words}: saves {one.get('expectedSavingPercent', '?')}% (estimated)"))
    real = one.get("realised")
    if real is not None:
        words = f"{_money(real['costPerHour'])} {money} per hour over {real['seconds']} s"
        words += f" at {real.get('requestsPerSecond', '?')}"
        words += " requests/s (measured)"
        if "savingPercent" in real:
            words += f": saved {real['savingPercent']}% against what it would have cost before (estimated)"
        else:
            words += "; demand was another one than when it was decided: no saving can be told"
        lines.append(_wrap("realised", words))
    elif "expectedCostPerHour" in one:
        lines.append(_wrap("realised", "not known: the window is not over, or something moved before it was"))
    lines += [_wrap("gave way", words) for words in one.get("relaxed", ())]
    options = one.get("options", ())
    if options:
        lines.append("  options        cost per hour of the namespace (estimated)")
        width = max(len(option["name"]) for option in options)
        for option in options:
            why = option.get("reason", "holds" if option["feasible"] else "")
            lead = f"    {option['name']:<{width}} {_money(option.get('costPerHour')):>10}  "
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
        spent = f"{_money(one['spent'])} spent" if "spent" in one else "spend unknown"
        ahead = f", {_money(one['forecast'])} expected at the end (estimated)" if "forecast" in one else ""
        rung = f", {one['rung'].get('action')} holds" if "rung" in one else ""
        words = f"{spent} of {_money(one['ceiling'])} {one['currency']} per {one['period']}{ahead}{rung}"
        lines.append(_wrap(one["name"], words))
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
