"""The one RouteConfiguration of a namespace: model, class and sensitivity decide which tiers a request may reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierwise.api.model_tier import ModelTier
from tierwise.api.namespace_budget import NamespaceBudget
from tierwise.api.routing_class import ALL_FALLBACK_DEFAULTS, ClassMatch, FallbackReason, HeaderMatch, RoutingClass
from tierwise.api.routing_policy import RoutingPolicy
from tierwise.api.scalars import Sensitivity
from tierwise.core import ceiling, routing, sensitivity
from tierwise.core.world import Key
from tierwise.render.envoy import (
    consumers,
    errors,
    guard,
    models,
    prefix_lua,
    request_limits,
    shadow,
    throttle,
    unattended,
)
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import (
    BYTES_HEADER,
    MODEL_HEADER,
    NO_MODEL,
    PREFIX_FILTER,
    PREFIX_HEADER,
    SATURATED_HEADER,
    SENSITIVITY_HEADER,
    UNREACHED_HEADER,
    extension,
    metadata,
    seconds,
    typed,
)
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import ROUTES
from tierwise.render.envoy.request_limits import BYTES_PER_TOKEN

ENDPOINTS = "/v1/(chat/completions|completions|embeddings|responses|rerank|score)"
"""Paths that go to tiers. Engines have others, such as those that load adapters, which are not for clients."""

_LARGEST = 2**62
_RETRY_ON = {
    FallbackReason.CONNECT_FAILURE: ("connect-failure", "refused-stream", "reset"),
    FallbackReason.SERVER_ERROR: ("5xx",),
    FallbackReason.RATE_LIMITED: ("retriable-status-codes",),
    # Envoy reports a time-out of an attempt as a reset.
    FallbackReason.TIMEOUT: ("reset",),
    FallbackReason.LOW_CONFIDENCE: ("retriable-headers",),
    FallbackReason.SATURATED: ("retriable-headers",),
}


def configuration(
    namespace: str,
    policies: Mapping[str, RoutingPolicy],
    owners: Mapping[str, str],
    tiers: Mapping[str, ModelTier],
    identities: Mapping[str, tuple[str, ...]],
    budgets: Mapping[str, NamespaceBudget],
    options: GatewayOptions,
    *,
    gateways: int = 1,
) -> Resource:
    """The namespace's routes.

    Args:
        namespace: whose.
        policies: by name.
        owners: model -> name of the policy that owns it.
        tiers: the namespace's tiers by name.
        identities: consumer -> what it is known by.
        budgets: the namespace's, by name.
        options: the gateway's settings.
        gateways: that share a budget's rates.
    """
    withheld = ceiling.withheld(budgets, tiers)
    open_tiers = {name: tier for name, tier in tiers.items() if name not in withheld}
    by_model = {
        model: _route_list(
            _Policy(
                Key(namespace, owner), policies[owner], open_tiers, identities, budgets, options, gateways, withheld
            ).routes(model)
        )
        for model, owner in sorted(owners.items())
    }
    listing = {"match": models.MATCH, **models.listing(namespace, policies, owners, qualified=False)}
    by_model[NO_MODEL] = _route_list([listing, {"match": {"prefix": "/"}, **errors.unknown_endpoint()}])
    unknown = {"match": {"prefix": "/"}, **errors.unknown_model(namespace)}
    return {
        "@type": ROUTES,
        "name": namespace,
        "validate_clusters": True,
        "max_direct_response_body_size_bytes": models.MAX_BYTES,
        "response_headers_to_add": errors.answer_headers(),
        "virtual_hosts": [
            {
                "name": namespace,
                "domains": ["*"],
                "include_request_attempt_count": True,  # `accesslog.arrivals` counts first attempts
                "matcher": {
                    "matcher_tree": {
                        "input": extension(
                            "model", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=MODEL_HEADER
                        ),
                        "exact_match_map": {"map": by_model},
                    },
                    "on_no_match": {"action": {"name": "unknown", "typed_config": typed_route(unknown)}},
                },
            }
        ],
    }


def typed_route(route: Mapping[str, Any]) -> dict[str, Any]:
    """A single route as an action of a matcher."""
    return typed("envoy.config.route.v3.Route", **route)


def _route_list(routes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"action": extension("routes", "envoy.config.route.v3.RouteList", routes=list(routes))}


@dataclass(frozen=True, slots=True)
class _Policy:
    """One policy with all that its routes are made of.

    Attributes:
        tiers: those that some budget withholds are not among them. withheld: tier -> that budget.
    """

    key: Key
    policy: RoutingPolicy
    tiers: Mapping[str, ModelTier]
    identities: Mapping[str, tuple[str, ...]]
    budgets: Mapping[str, NamespaceBudget]
    options: GatewayOptions
    gateways: int
    withheld: Mapping[str, str]

    def routes(self, model: str) -> list[dict[str, Any]]:
        """Routes of one model: its classes in order, then what no class takes."""
        routes: list[dict[str, Any]] = []
        for routing_class in self.policy.spec.classes:
            conditions = _conditions(routing_class.match, model, self.identities)
            if conditions is not None:
                routes += self._of_class(routing_class, conditions)
        served = {"safe_regex": {"regex": ENDPOINTS}}
        refused = {"match": served, "metadata": self._labels(""), **errors.no_class(str(self.key))}
        one = models.one(self.key.namespace, self.policy)
        return [*routes, refused, one, {"match": {"prefix": "/"}, **errors.unknown_endpoint()}]

    def _of_class(self, routing_class: RoutingClass, conditions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A route per level that a header may raise it to, where that changes tiers; then the class's own."""
        held = ceiling.of_class(self.budgets, self.key.name, routing_class.name)
        first: list[dict[str, Any]] = []
        if held.denied is not None:
            answer = errors.over_budget(self.key.namespace, held.denied)
            denied = self._route(routing_class, held, conditions, "Denied", answer)
            if held.denied.lapses_seconds is None:
                return [denied]
            denied["match"] |= unattended.still_denied(held.denied.lapses_seconds)
            first.append(denied)
        if held.unattended is not None:
            answer = errors.unattended(self.key.namespace, held.unattended.budget)
            closed = self._route(routing_class, held, conditions, "Unattended", answer)
            closed["match"] |= unattended.closes(held.unattended)
            first.append(closed)
        least = sensitivity.effective(self.policy, routing_class)
        levels = sorted((level for level in Sensitivity if level >= least), reverse=True)
        plans = {
            level: routing.plan_attempts(
                self.policy, routing_class, self.tiers, level, held.tiers, relieved=held.relief
            )
            for level in levels
        }
        # Copies are a luxury: a budget that holds anything back ends them.
        shadows = {
            level: None if held.holds else routing.shadow_tier(routing_class, self.tiers, level) for level in levels
        }
        refusals = request_limits.refusals(str(self.key), routing_class, ENDPOINTS, conditions)
        routes = first + [{**each, "metadata": self._labels(routing_class.name)} for each in refusals]
        for level in levels:
            if level > least and (plans[level], shadows[level]) == (plans[least], shadows[least]):
                continue  # the class's own route does the same
            headers = conditions + (_raised_to(level) if level > least else [])
            action = self._action(routing_class, plans[level], shadows[level], level)
            routes.append(self._route(routing_class, held, headers, level.value, action))
        return routes

    def _route(
        self,
        routing_class: RoutingClass,
        held: ceiling.Ceiling,
        headers: list[dict[str, Any]],
        name: str,
        action: dict[str, Any],
    ) -> dict[str, Any]:
        match: dict[str, Any] = {"safe_regex": {"regex": ENDPOINTS}}
        if headers:
            match["headers"] = headers
        limits = routing_class.limits
        assumed = (limits.max_output_tokens if limits is not None else None) or throttle.ASSUMED_TOKENS
        limited = (
            throttle.of_route(throttle.metadata(self.key.namespace, held.rates, self.gateways, assumed))
            if held.denied is None
            else {}
        )
        labels = self._labels(routing_class.name, routing_class)["filter_metadata"]
        asked = request_limits.metadata(routing_class.limits)
        route = {
            "name": f"{self.key}/{routing_class.name}/{name}",
            "match": match,
            "metadata": {"filter_metadata": labels | limited | asked},
        }
        return route | action

    def _labels(self, class_name: str, routing_class: RoutingClass | None = None) -> dict[str, Any]:
        labels = {"namespace": self.key.namespace, "policy": self.key.name, "class": class_name}
        if routing_class is not None and FallbackReason.LOW_CONFIDENCE in routing_class.fallback.when:
            labels["cascade"] = str(routing_class.fallback.attempts)  # `accesslog.lost`: earlier ones are thrown away
        return metadata(**labels)

    def _action(
        self, routing_class: RoutingClass, plan: routing.Attempts, copied: tuple[str, int] | None, level: Sensitivity
    ) -> dict[str, Any]:
        if not plan.groups:
            budget = next((self.withheld[ref.name] for ref in routing_class.tiers if ref.name in self.withheld), None)
            if budget is not None:
                return errors.not_priced(str(self.key), routing_class.name, f"{self.key.namespace}/{budget}")
            if any(ref.name in self.tiers for ref in routing_class.tiers):
                return errors.not_cleared(str(self.key), routing_class.name, level.value)
            return errors.no_tier(str(self.key), routing_class.name)
        limits = routing_class.limits
        hashed = _hash_policy(routing_class)
        action: dict[str, Any] = {
            "inline_cluster_specifier_plugin": {"extension": _groups(self.key.namespace, plan, sticky=bool(hashed))},
            # A stream may last long: silence ends a request, not time, unless the user says so.
            "timeout": seconds(limits.timeout.seconds) if limits is not None and limits.timeout is not None else "0s",
            "idle_timeout": seconds(self.options.idle_timeout_seconds),
            "retry_policy": _retries(routing_class, plan),
        }
        if hashed:
            action["hash_policy"] = hashed
        if copied is not None:
            name, percent = copied
            labels = {"namespace": self.key.namespace, "policy": self.key.name, "class": routing_class.name}
            most = limits.max_output_tokens if limits is not None else None
            action["request_mirror_policies"] = [shadow.policy(f"{self.key.namespace}/{name}", percent, labels, most)]
        return {"route": action, **_scripts(routing_class)}


def _hash_policy(routing_class: RoutingClass) -> list[dict[str, Any]]:
    """What equal requests have in common; empty without affinity. Tier and replica are both chosen by it."""
    affinity = routing_class.affinity
    if affinity is None:
        return []
    return [{"header": {"header_name": affinity.header or PREFIX_HEADER}, "terminal": True}]


def _scripts(routing_class: RoutingClass) -> dict[str, Any]:
    """What the listener's filters do for this class only."""
    affinity = routing_class.affinity
    if affinity is None or affinity.prefix is None:
        return {}
    script = typed(
        "envoy.extensions.filters.http.lua.v3.LuaPerRoute",
        name=prefix_lua.NAME,
        filter_context={"characters": affinity.prefix.characters},
    )
    return {"typed_per_filter_config": {PREFIX_FILTER: script}}


def _groups(namespace: str, plan: routing.Attempts, *, sticky: bool) -> dict[str, Any]:
    """`sticky`: the hash policy picks the position in each group, at random where the request has nothing to hash."""
    chosen = {"use_hash_policy": True} if sticky else {}
    return extension(
        "tierwise.attempts",
        "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
        priority_groups=[
            {
                "name": f"attempt-{number}",
                "clusters": [
                    {"cluster_name": _cluster(f"{namespace}/{name}", guarded=guarded), "weight": percent}
                    for (name, percent), guarded in zip(group, gives_way, strict=True)
                ],
            }
            for number, (group, gives_way) in enumerate(zip(plan.groups, plan.guarded, strict=True), start=1)
        ],
        **chosen,
    )


def _cluster(name: str, *, guarded: bool) -> str:
    return guard.front(name) if guarded else name


def _retries(routing_class: RoutingClass, plan: routing.Attempts) -> dict[str, Any]:
    """Retries for the reasons that the user lists and no others; each goes to the next group.

    What a saturated tier passed on could have waited there, so it must not fail elsewhere, for whatever reason.
    """
    fallback = routing_class.fallback
    gives_way = any(any(group) for group in plan.guarded)
    when = {*fallback.when, *(ALL_FALLBACK_DEFAULTS if gives_way else ())}
    reasons = dict.fromkeys(word for reason in sorted(when) for word in _RETRY_ON[reason])
    headers = []
    if {FallbackReason.CONNECT_FAILURE, FallbackReason.TIMEOUT} & when:
        # What the relay says of a provider that it could not reach, and the guard of a tier.
        headers.append({"name": UNREACHED_HEADER, "present_match": True})
    if FallbackReason.LOW_CONFIDENCE in when:
        headers.append({"name": "x-low-confidence", "string_match": {"exact": "true"}})
    if FallbackReason.SATURATED in when:
        headers.append({"name": SATURATED_HEADER, "present_match": True})
    if headers:
        reasons["retriable-headers"] = None
    policy: dict[str, Any] = {
        "retry_on": ",".join(sorted(reasons)),
        "num_retries": fallback.attempts - 1 + gives_way,  # one more, to wait
        "refresh_cluster_on_retry": True,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
        # When the same tier is tried again: not the same replica.
        "retry_host_predicate": [
            extension("previous_hosts", "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
        ],
        "host_selection_retry_max_attempts": 30,  # draws, of two hosts at random: the one that failed may come up again
    }
    if FallbackReason.RATE_LIMITED in when:
        policy["retriable_status_codes"] = [429]
    if headers:
        policy["retriable_headers"] = headers
    if FallbackReason.TIMEOUT in when:
        policy["per_try_timeout"] = seconds(fallback.timeout.seconds)
    return policy


def _conditions(
    match: ClassMatch | None, model: str, identities: Mapping[str, tuple[str, ...]]
) -> list[dict[str, Any]] | None:
    """Header conditions of a class for one model; None when it can not take the request.

    A class for consumers none of whom is known, or where nobody is asked who calls, takes nothing.
    """
    if match is None:
        return []
    if match.models is not None and model not in match.models:
        return None
    conditions = [_header(header) for header in match.headers or ()]
    if match.consumers:
        known = tuple(each for name in match.consumers for each in identities.get(name, ()))
        if not known:
            return None
        conditions.append(consumers.condition(known))
    size = match.prompt_tokens
    if size is not None:
        least = (size.min or 0) * BYTES_PER_TOKEN
        most = (size.max + 1) * BYTES_PER_TOKEN if size.max is not None else _LARGEST
        conditions.append({"name": BYTES_HEADER, "range_match": {"start": least, "end": most}})
    return conditions


def _header(match: HeaderMatch) -> dict[str, Any]:
    if match.value is not None:
        compared: dict[str, Any] = {"exact": match.value}
    elif match.prefix is not None:
        compared = {"prefix": match.prefix}
    else:
        compared = {"safe_regex": {"regex": match.pattern}}
    return {"name": match.name, "string_match": compared}


def _raised_to(level: Sensitivity) -> list[dict[str, Any]]:
    """The request's header asks for this level. Restricted also takes every value that names no level."""
    if level is not Sensitivity.RESTRICTED:
        return [_names_level(level.value)]
    known = "|".join(each.value for each in Sensitivity if each is not Sensitivity.RESTRICTED)
    return [{"name": SENSITIVITY_HEADER, "present_match": True}, {**_names_level(f"({known})"), "invert_match": True}]


def _names_level(pattern: str) -> dict[str, Any]:
    return {"name": SENSITIVITY_HEADER, "string_match": {"safe_regex": {"regex": f"(?i){pattern}"}}}
