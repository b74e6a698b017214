"""What an older configuration must not do any more: clearances and sensitivities of now, held against its routes.

The last good configuration is served while gateways refuse a newer one. It was right when it was made; a tier whose
clearance was lowered since, or a policy whose sensitivity was raised, is a limit that never waits for a valid render.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tierwise.api.model_tier import ModelTier
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.render.envoy import errors
from tierwise.render.envoy.bundle import Limits, Resource


@dataclass(frozen=True, slots=True)
class _Route:
    """A route of a class, by its name `namespace/policy/class/level`."""

    policy: str
    class_name: str
    level: Sensitivity


def of_namespace(tiers: Mapping[str, ModelTier], policies: Mapping[str, RoutingPolicy]) -> Limits:
    """The limits that the namespace's objects set now, whether or not their configuration can be served."""
    required: dict[tuple[str, str], Sensitivity] = {}
    for name, policy in policies.items():
        required[name, ""] = policy.spec.sensitivity
        required.update(((name, one.name), policy.spec.class_sensitivity(one)) for one in policy.spec.classes)
    return Limits({name: tier.spec.effective_clearance for name, tier in tiers.items()}, required)


def hold(routes: Resource | None, limits: Limits) -> Resource | None:
    """The routes without the tiers that may not see their requests any more; a class without any answers 403."""
    if routes is None:
        return None
    return {**routes, "virtual_hosts": [_virtual_host(host, limits) for host in routes["virtual_hosts"]]}


def _virtual_host(host: Resource, limits: Limits) -> Resource:
    matcher = host["matcher"]
    tree = matcher["matcher_tree"]
    by_model = {model: _leaf(leaf, limits) for model, leaf in tree["exact_match_map"]["map"].items()}
    return {**host, "matcher": {**matcher, "matcher_tree": {**tree, "exact_match_map": {"map": by_model}}}}


def _leaf(leaf: Resource, limits: Limits) -> Resource:
    action = leaf["action"]
    routes = action["typed_config"]["routes"]
    held = [_held(route, routes, limits) for route in routes]
    return {**leaf, "action": {**action, "typed_config": {**action["typed_config"], "routes": held}}}


def _held(route: Resource, all_routes: Sequence[Resource], limits: Limits) -> Resource:
    if "route" not in route:
        return route
    known = _parsed(route)
    if known is None:
        return _refusal(route, "?", "?", Sensitivity.RESTRICTED)
    required = _required(known, all_routes, limits)
    extension = route["route"]["inline_cluster_specifier_plugin"]["extension"]
    groups = [
        {**group, "clusters": [one for one in group["clusters"] if limits.cleared(one["cluster_name"], required)]}
        for group in extension["typed_config"]["priority_groups"]
    ]
    left = [group for group in groups if group["clusters"]]
    if not left:
        return _refusal(route, known.policy, known.class_name, required)
    config = {**extension["typed_config"], "priority_groups": left}
    specifier = {"extension": {**extension, "typed_config": config}}
    return {**route, "route": {**route["route"], "inline_cluster_specifier_plugin": specifier}}


def _parsed(route: Resource) -> _Route | None:
    parts = str(route.get("name", "")).split("/")
    levels = {level.value: level for level in Sensitivity}
    if len(parts) != 4 or parts[3] not in levels:
        return None
    return _Route(f"{parts[0]}/{parts[1]}", parts[2], levels[parts[3]])


def _required(route: _Route, all_routes: Sequence[Resource], limits: Limits) -> Sensitivity:
    """The highest sensitivity that this route's requests can have.

    The lowest route of a class also takes the requests whose header asks for a level that has no route of its own.
    """
    siblings = {
        one.level
        for one in map(_parsed, all_routes)
        if one is not None and (one.policy, one.class_name) == (route.policy, route.class_name)
    }
    taken = {route.level}
    if route.level == min(siblings):
        taken |= {level for level in Sensitivity if level > route.level and level not in siblings}
    policy = route.policy.split("/")[1]
    now = limits.required.get((policy, route.class_name), limits.required.get((policy, ""), Sensitivity.PUBLIC))
    return max(*taken, now, Sensitivity.PUBLIC)


def _refusal(route: Resource, policy: str, class_name: str, level: Sensitivity) -> Resource:
    kept = {name: value for name, value in route.items() if name != "route"}
    return {**kept, **errors.not_cleared(policy, class_name, level.value)}
