"""What `explain` says of a policy's tiers: replicas, capacity, latency, what they cost, and what they passed on."""

from collections.abc import Mapping
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.preview.explain_words import condition, condition_document, figure, inputs_of, known, money_words, wrap
from tierwise.preview.facts import Facts


def document(facts: Facts, name: str) -> dict[str, Any]:
    """One tier for programs: what is not known is absent."""
    tier = facts.tiers.get(name)
    if tier is None:
        return {"name": name, "missing": True}
    status = tier.status
    ready = condition(status.conditions, "Ready")
    moved = next(
        (one for one in facts.events or () if one.about == f"ModelTier {name}" and one.reason == "ReplicasMoved"), None
    )
    return known(
        name=name,
        kind="inCluster" if tier.spec.in_cluster is not None else "external",
        ready=condition_document(ready),
        replicas=status.replicas.dump() if status.replicas is not None else None,
        capacity=status.capacity.dump() if status.capacity is not None else None,
        passedOn=figure(inputs_of(facts.policy.status.decision, f"tier/{name}/").get("passedOnPerSecond")),
        latency=status.latency.dump() if status.latency is not None else None,
        cost=status.cost.dump() if status.cost is not None else None,
        price=_price(tier),
        lastMove=known(time=moved.time, note=moved.note) if moved is not None else None,
    )


def _price(tier: ModelTier) -> dict[str, Any] | None:
    inside, outside = tier.spec.in_cluster, tier.spec.external
    found = inside.price if inside is not None else outside.price if outside is not None else None
    return {**found.dump(), "provenance": "Declared"} if found is not None else None


def text(found: Mapping[str, Any]) -> str:
    """All tiers of `explain.document` in plain words."""
    lines = ["Tiers"]
    for one in found.get("tiers", ()):
        if one.get("missing"):
            lines.append(wrap(one["name"], "does not exist"))
            continue
        lines.append(wrap(one["name"], "; ".join(_tier_parts(one))))
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
    passed = one.get("passedOn")
    if passed is not None:
        words = f"{float(passed['value']):g} requests/s" if float(passed["value"]) else "no requests"
        parts.append(f"passed on {words} while saturated (measured, at the last decision)")
    latency = one.get("latency")
    if latency is not None:
        values = [f"{name} {latency[key]}" for key, name in _LATENCIES if key in latency]
        parts.append(f"p95 {', '.join(values)} ({latency['provenance'].lower()})")
    cost = one.get("cost")
    if cost is not None and "perHour" in cost:
        source = cost["provenance"].lower()
        parts.append(f"{money_words(cost['perHour'])} {cost['currency']} per hour ({source}, at the last decision)")
    elif "price" not in one:
        parts.append("no price: its cost is unknown")
    if "lastMove" in one:
        parts.append(f"last moved {one['lastMove']['time']}: {one['lastMove']['note']}")
    return parts


_LATENCIES = (("ttftP95", "time to first token"), ("interTokenP95", "inter-token"))
