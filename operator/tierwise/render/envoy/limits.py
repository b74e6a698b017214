"""What an older configuration must not do any more: clearances, sensitivities and budgets of now, held against it.

The last good configuration is served while gateways refuse a newer one. It was right when it was made; a tier whose
clearance was lowered since, or a policy whose sensitivity was raised, is a limit that never waits for a valid render.
Nor does a budget that denies or throttles: else whoever may write policies could keep it off with one that Envoy
refuses.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import ceiling
from tierwise.core.ceiling import Rate
from tierwise.render.envoy import audit, errors, picker, shadow, throttle, unattended
from tierwise.render.envoy.bundle import GUARDED, ClassLimit, Limits, Resource
from tierwise.render.envoy.fields import METADATA


def of_namespace(
    tiers: Mapping[str, ModelTier],
    policies: Mapping[str, RoutingPolicy],
    owners: Mapping[str, str],
    callers: Iterable[str] | None = None,
    identities: Mapping[str, tuple[str, ...]] | None = None,
) -> Limits:
    """The limits that the namespace's objects set now, whether or not their configuration can be served.

    Args:
        tiers: by name.
        policies: by name.
        owners: model -> name of the policy that owns it.
        callers: keys of the scopes of those who may call; None: nobody is asked who calls.
        identities: consumer -> what it is known by.
    """
    required: dict[tuple[str, str], Sensitivity] = {}
    for name, policy in policies.items():
        required[name, ""] = policy.spec.sensitivity
        required.update(((name, one.name), policy.spec.class_sensitivity(one)) for one in policy.spec.classes)
    return Limits(
        clearances={name: tier.spec.effective_clearance for name, tier in tiers.items()},
        required=required,
        owners=dict(owners),
        hosts={
            name: urlsplit(tier.spec.external.url).hostname or ""
            for name, tier in tiers.items()
            if tier.spec.external is not None
        },
        pickers={
            name: (picker.host_of(tier.metadata.namespace, ref), ref.port)
            for name, tier in tiers.items()
            if (ref := picker.of(tier)) is not None
        },
        classes={
            name: tuple(
                ClassLimit(one.name, policy.spec.class_sensitivity(one), one.match) for one in policy.spec.classes
            )
            for name, policy in policies.items()
        },
        callers=frozenset(callers) if callers is not None else None,
        identities=dict(identities or {}),
    )


def under(
    limits: Limits,
    namespace: str,
    budgets: Mapping[str, NamespaceBudget],
    tiers: Mapping[str, ModelTier],
    gateways: int = 1,
) -> Limits:
    """The limits with what the namespace's budgets refuse or throttle, and without tiers that have no price.

    Args:
        limits: without them.
        namespace: whose.
        budgets: by name.
        tiers: by name.
        gateways: that share a rate.
    """
    exempt = {(one.policy, one.class_name) for budget in budgets.values() for one in budget.spec.exempt}
    unpriced = ceiling.withheld(budgets, tiers)
    return replace(
        limits,
        clearances={name: level for name, level in limits.clearances.items() if name not in unpriced},
        namespace=namespace,
        ceiling=ceiling.of_class(budgets, "", ""),
        exempt={key: ceiling.of_class(budgets, *key) for key in sorted(exempt)},
        gateways=gateways,
    )


def hold(routes: Resource | None, limits: Limits) -> Resource | None:
    """The routes without the tiers that may not see their requests any more; a class without any answers 403.

    Raises:
        UncheckableError: nobody can tell which requests they take.
    """
    if routes is None:
        return None
    return {**routes, "virtual_hosts": [_virtual_host(host, limits) for host in routes["virtual_hosts"]]}


def _virtual_host(host: Resource, limits: Limits) -> Resource:
    matcher = host["matcher"]
    tree = matcher["matcher_tree"]
    by_model = {model: _leaf(leaf, limits, model) for model, leaf in tree["exact_match_map"]["map"].items()}
    return {**host, "matcher": {**matcher, "matcher_tree": {**tree, "exact_match_map": {"map": by_model}}}}


def _leaf(leaf: Resource, limits: Limits, model: str) -> Resource:
    action = leaf["action"]
    routes = action["typed_config"]["routes"]
    needed = audit.levels(model, routes, limits)
    held = [
        each
        for route, level in zip(routes, needed, strict=True)
        for each in ([route] if level is None else _budgeted(_held(route, level, limits), limits))
    ]
    return {**leaf, "action": {**action, "typed_config": {**action["typed_config"], "routes": held}}}


def _held(route: Resource, required: Sensitivity, limits: Limits) -> Resource:
    extension = route["route"]["inline_cluster_specifier_plugin"]["extension"]
    before = extension["typed_config"]["priority_groups"]
    groups = [
        {**group, "clusters": [one for one in group["clusters"] if limits.cleared(one["cluster_name"], required)]}
        for group in before
    ]
    if groups != before:  # who was to relieve a tier may be gone: its requests wait
        groups = [{**group, "clusters": [_waiting(one) for one in group["clusters"]]} for group in groups]
    left = [group for group in groups if group["clusters"]]
    if not left:
        return _refusal(route, required)
    config = {**extension["typed_config"], "priority_groups": left}
    action = {**route["route"], "inline_cluster_specifier_plugin": {"extension": {**extension, "typed_config": config}}}
    copies = action.pop("request_mirror_policies", [])
    allowed = [copy for copy in copies if limits.cleared(shadow.target(copy), required)]
    return {**route, "route": action | ({"request_mirror_policies": allowed} if allowed else {})}


def _waiting(cluster: Resource) -> Resource:
    return {**cluster, "cluster_name": cluster["cluster_name"].removesuffix(GUARDED)}


def _labels(route: Resource) -> Mapping[str, str]:
    found: Mapping[str, str] = route.get("metadata", {}).get("filter_metadata", {}).get(METADATA, {})
    return found


def _budgeted(route: Resource, limits: Limits) -> list[Resource]:
    """The route, or what a budget answers in its place; both, where gateways end a denial by themselves."""
    labels = _labels(route)
    key = (str(labels.get("policy", "")), str(labels.get("class", "")))
    held = limits.exempt.get(key, limits.ceiling)
    denied = held.denied
    if "route" not in route:
        return [route]
    if denied is None:
        return [_throttled(route, held.rates, limits)]
    kept = {name: value for name, value in route.items() if name not in {"route", "typed_per_filter_config"}}
    refused = {**kept, **errors.over_budget(limits.namespace, denied)}
    if denied.lapses_seconds is None:
        return [refused]
    return [{**refused, "match": refused["match"] | unattended.still_denied(denied.lapses_seconds)}, route]


def _throttled(route: Resource, rates: tuple[Rate, ...], limits: Limits) -> Resource:
    """The route at the rates of now; where none is decided now an older one stays, which is stricter."""
    if not rates:
        return route
    filters = route.get("metadata", {}).get("filter_metadata", {})
    before = throttle.of(filters)
    assumed = int(before.get("assumed_tokens", throttle.ASSUMED_TOKENS))
    found = throttle.of_route(throttle.metadata(limits.namespace, rates, limits.gateways, assumed))
    return {**route, "metadata": {**route.get("metadata", {}), "filter_metadata": {**filters, **found}}}


def _refusal(route: Resource, level: Sensitivity) -> Resource:
    kept = {name: value for name, value in route.items() if name != "route"}
    labels = _labels(route)
    policy = f"{labels.get('namespace', '?')}/{labels.get('policy', '?')}"
    return {**kept, **errors.not_cleared(policy, str(labels.get("class", "?")), level.value)}
