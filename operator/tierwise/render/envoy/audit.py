"""A second look at what is about to be published: can any request reach a tier that may not see it?

It shares no code with what makes the routes. It walks the finished Envoy resources, works out for every value of the
sensitivity header which routes take a request, of which classes by the users' own words, and which clusters these can
reach by weight, retry or otherwise. What it does not know counts as a way out: a field that it has never seen is a
violation, not a detail.

It errs on the strict side: a route is taken to be shadowed by an earlier one only where that is certain.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierwise.api.scalars import Sensitivity
from tierwise.core.sensitivity import UNSAFE
from tierwise.errors import TierwiseError
from tierwise.render.envoy import audit_clusters
from tierwise.render.envoy.audit_form import Unknown, only
from tierwise.render.envoy.bundle import GUARDED, ClassLimit, Limits, NamespaceBundle, Resource
from tierwise.render.envoy.fields import (
    BYTES_HEADER,
    IDENTITY_HEADER,
    METADATA,
    SENSITIVITY_HEADER,
)

PREFIX = UNSAFE
"""How a message of this check begins."""

_GROUPS = "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier"
_ROUTE_LIST = "envoy.config.route.v3.RouteList"
_ROUTE = "envoy.config.route.v3.Route"
_LUA_OF_ROUTE = "envoy.extensions.filters.http.lua.v3.LuaPerRoute"
_COPY_FOR = "x-tierwise-shadow"
_ROUTE_FIELDS = {
    "name",
    "match",
    "metadata",
    "route",
    "direct_response",
    "response_headers_to_add",
    "typed_per_filter_config",
    "@type",
}
_SCRIPT = {"@type", "name", "filter_context"}
_MATCH = {"safe_regex", "prefix", "path", "headers", "runtime_fraction"}
_RETRIES = {
    "retry_on",
    "num_retries",
    "refresh_cluster_on_retry",
    "retry_back_off",
    "retry_host_predicate",
    "host_selection_retry_max_attempts",
    "retriable_status_codes",
    "retriable_headers",
    "per_try_timeout",
}


_NAMES = {level.value.lower(): level for level in Sensitivity}
_PROBES: tuple[str | None, ...] = (
    None,
    "",
    "no such level",
    *(f"{left.value},{right.value}" for left in Sensitivity for right in Sensitivity),
    *(spelled for level in Sensitivity for spelled in (level.value, level.value.lower(), level.value.upper())),
)
"""Values of the header; None: the request has none."""

_CONFIGURATION = {
    "@type",
    "name",
    "validate_clusters",
    "response_headers_to_add",
    "virtual_hosts",
    "max_direct_response_body_size_bytes",  # how much the gateway says by itself: leads nowhere
}
_HOST = {"name", "domains", "include_request_attempt_count", "matcher"}
_ACTION = {
    "inline_cluster_specifier_plugin",
    "timeout",
    "idle_timeout",
    "retry_policy",
    "hash_policy",
    "request_mirror_policies",
}
_MIRROR = {"cluster", "runtime_fraction", "request_headers_mutations"}
_COPIES = "tierwise_shadow"
"""The cluster to which requests are copied; the one header below says where a copy goes from there."""


class UncheckableError(TierwiseError):
    """Routes have another form than the one that is understood."""


_MISSHAPEN = (Unknown, KeyError, TypeError, ValueError, AttributeError, StopIteration, re.error)


@dataclass(frozen=True, slots=True)
class _Condition:
    """What a route asks of the sensitivity header.

    Attributes:
        pattern: regular expression over the whole value; None: any value.
        inverted: must not match.
    """

    pattern: str | None
    inverted: bool

    def may_hold(self, value: str | None) -> bool:
        """False only where it can not."""
        if value is None:
            # Whether an inverted condition holds for an absent header has changed between versions of Envoy.
            return self.inverted
        return self._matches(value) != self.inverted

    def must_hold(self, value: str | None) -> bool:
        """True only where it does in any version."""
        return value is not None and self._matches(value) != self.inverted

    def _matches(self, value: str) -> bool:
        return self.pattern is None or re.fullmatch(self.pattern, value) is not None


_EVERY_PATH = "prefix:'/'"


@dataclass(frozen=True, slots=True)
class _Taken:
    """A route as far as it matters here.

    Attributes:
        name: for the message. path: canonical form of the path condition.
        other: conditions on other headers, canonical. levels: conditions on the sensitivity header.
        policy, class_name: its labels.
        clusters: that it can reach; empty when it answers by itself.
    """

    name: str
    path: str
    other: frozenset[str]
    levels: tuple[_Condition, ...]
    policy: str
    class_name: str
    clusters: tuple[str, ...]

    def may_take(self, value: str | None) -> bool:
        """Whether a request with this header can match."""
        return all(condition.may_hold(value) for condition in self.levels)

    def covers(self, later: "_Taken") -> bool:
        """Whether, but for the sensitivity, it takes every request that a later route would take."""
        return self.path in {later.path, _EVERY_PATH} and self.other <= later.other

    def takes_all_of(self, conditions: frozenset[str]) -> bool:
        """Whether, but for path and sensitivity, it takes every request that fulfils these conditions."""
        return self.other <= conditions

    def surely_takes(self, value: str | None) -> bool:
        """Whether a request with this header is taken, if it fulfils all else."""
        return all(condition.must_hold(value) for condition in self.levels)


def audit(bundle: NamespaceBundle, limits: Limits) -> tuple[str, ...]:
    """What is wrong with a bundle, each as a sentence; empty when no request can reach what it must not.

    Args:
        bundle: as it would be published.
        limits: of the objects as they are now.
    """
    try:
        found = [*audit_clusters.violations(bundle, limits)]
        if bundle.routes is not None:
            for model, routes in _route_lists(bundle.routes, bundle.namespace):
                found += _violations(bundle, limits, model, routes)
    except _MISSHAPEN as error:
        return (f"{PREFIX}it has a form that can not be checked: {type(error).__name__}: {error}",)
    return tuple(dict.fromkeys(PREFIX + text for text in found))


def level_of(value: str | None) -> Sensitivity:
    """What a header's value asks for; words that name no level ask for the highest."""
    return Sensitivity.PUBLIC if value is None else _NAMES.get(value.lower(), Sensitivity.RESTRICTED)


def levels(model: str, routes: Sequence[Resource], limits: Limits) -> tuple[Sensitivity | None, ...]:
    """For each route of a model the highest sensitivity of the requests that it can take; None where it takes none.

    Raises:
        UncheckableError: the routes have another form than the one that is understood.
    """
    try:
        return tuple(_levels(model, [_taken(route) for route in routes], limits))
    except _MISSHAPEN as error:
        raise UncheckableError(f"routes of model {model}: {type(error).__name__}: {error}") from error


def _violations(bundle: NamespaceBundle, limits: Limits, model: str, routes: Sequence[_Taken]) -> Iterator[str]:
    for route, needed in zip(routes, _levels(model, routes, limits), strict=True):
        for cluster in route.clusters:
            namespace, _, tier = cluster.partition("/")
            if namespace != bundle.namespace or cluster not in bundle.clusters:
                yield f"route {route.name} of model {model} leads to {cluster}, which is no tier of the namespace"
            elif needed is not None and not limits.cleared(cluster, needed):
                tier = tier.removesuffix(GUARDED)
                clearance = limits.clearances.get(tier)
                cleared = f"cleared for {clearance.value}" if clearance is not None else "no tier any more"
                yield f"requests of model {model} that are {needed.value} could reach tier {tier} ({cleared})"


def _levels(model: str, routes: Sequence[_Taken], limits: Limits) -> Iterator[Sensitivity | None]:
    if len({route.path for route in routes if route.clusters}) > 1:
        raise Unknown(f"routes of model {model} that lead to tiers differ in their paths")
    owner = limits.owners.get(model, "")
    classes = [one for one in limits.classes.get(owner, ()) if _asked_by(one, model, limits) is not None]
    wanted = [frozenset(map(_canonical, _asked_by(one, model, limits) or ())) for one in classes]
    least = limits.required.get((owner, ""), Sensitivity.RESTRICTED)  # without an owner nobody knows what requests hold
    reached = _Reached(routes, [one.sensitivity for one in classes], wanted)
    for number, route in enumerate(routes):
        if not route.clusters:
            yield None
            continue
        own = next((n for n, one in enumerate(classes) if (owner, one.name) == (route.policy, route.class_name)), None)
        # A request that fulfils all that its own class asks for belongs to that class or to one before it.
        until = own + 1 if own is not None and wanted[own] <= route.other else len(classes)
        earlier = [before for before in routes[:number] if before.covers(route)]
        found = [
            max(least, level_of(value), *reached.by_classes(number, value, own, until))
            for value in _PROBES
            if route.may_take(value) and not any(before.surely_takes(value) for before in earlier)
        ]
        yield max(found, default=None)


def _asked_by(one: ClassLimit, model: str, limits: Limits) -> tuple[Resource, ...] | None:
    """What Envoy has to ask of headers for a class to take a request of a model; None when it takes none."""
    match = one.match
    if match is None:
        return ()
    if match.models is not None and model not in match.models:
        return None
    found: list[Resource] = []
    if match.consumers:
        known = [re.escape(each) for name in match.consumers for each in limits.identities.get(name, ())]
        if not known:
            return None
        found.append({"name": IDENTITY_HEADER, "string_match": {"safe_regex": {"regex": "|".join(sorted(known))}}})
    for header in match.headers or ():
        if header.value is not None:
            compared: Resource = {"exact": header.value}
        elif header.prefix is not None:
            compared = {"prefix": header.prefix}
        else:
            compared = {"safe_regex": {"regex": header.pattern}}
        found.append({"name": header.name, "string_match": compared})
    if match.prompt_tokens is not None:
        least, most = match.prompt_tokens.min or 0, match.prompt_tokens.max
        found.append({"name": BYTES_HEADER, "range_match": {"start": 4 * least, "end": _end(most)}})
    return tuple(found)


def _end(most_tokens: int | None) -> int:
    return 4 * (most_tokens + 1) if most_tokens is not None else 2**62


class _Reached:
    """Which classes' requests get as far as a route: those that no route before it takes for sure.

    Of many classes and routes only the last route counts that the requests of some class of a level can get to, for the
    first class, the first two, and so on: 200 classes are checked in milliseconds.
    """

    def __init__(self, routes: Sequence[_Taken], of: Sequence[Sensitivity], wanted: Sequence[frozenset[str]]) -> None:
        self._of = of
        self._farthest: dict[str | None, list[dict[Sensitivity, int]]] = {}
        takers = [
            [(number, route) for number, route in enumerate(routes) if route.takes_all_of(conditions)]
            for conditions in wanted
        ]
        for value in _PROBES:
            farthest: dict[Sensitivity, int] = {}
            steps = [farthest]
            for level, able in zip(of, takers, strict=True):
                first = next((number for number, route in able if route.surely_takes(value)), len(routes))
                farthest = {**farthest, level: max(first, farthest.get(level, -1))}
                steps.append(farthest)
            self._farthest[value] = steps

    def by_classes(self, number: int, value: str | None, own: int | None, until: int) -> Iterator[Sensitivity]:
        """Levels of the classes before `until` whose requests can get to a route; its own class's is one of them."""
        if own is not None:
            yield self._of[own]
        for level, farthest in self._farthest[value][until].items():
            if farthest >= number:
                yield level


def _route_lists(configuration: Resource, namespace: str) -> Iterator[tuple[str, list[_Taken]]]:
    """Model -> its routes in order."""
    only(configuration, _CONFIGURATION, "the route configuration")
    if configuration["name"] != namespace:
        raise Unknown(f"the route configuration is called {configuration['name']}")
    for host in configuration["virtual_hosts"]:
        only(host, _HOST, "the virtual host")
        matcher = host["matcher"]
        only(matcher, {"matcher_tree", "on_no_match"}, "the matcher")
        tree = matcher["matcher_tree"]
        only(tree, {"input", "exact_match_map"}, "the matcher tree")
        for model, leaf in tree["exact_match_map"]["map"].items():
            config = leaf["action"]["typed_config"]
            if config["@type"].rpartition("/")[2] != _ROUTE_LIST:
                raise Unknown(f"the action of model {model} is a {config['@type']}")
            yield model, [_taken(route) for route in config["routes"]]
        rest = matcher["on_no_match"]["action"]["typed_config"]
        if rest["@type"].rpartition("/")[2] != _ROUTE:
            raise Unknown(f"the action of other models is a {rest['@type']}")
        yield "(any other)", [_taken(rest)]


def _taken(route: Resource) -> _Taken:
    name = str(route.get("name", "(without a name)"))
    only(route, _ROUTE_FIELDS, f"route {name}")
    match = route["match"]
    only(match, _MATCH, f"the match of route {name}")
    headers = match.get("headers", ())
    levels = tuple(_condition(one) for one in headers if one["name"].lower() == SENSITIVITY_HEADER)
    other = frozenset(_canonical(one) for one in headers if one["name"].lower() != SENSITIVITY_HEADER)
    if "runtime_fraction" in match:
        # It may hold or not: a condition that no other route has, so that it hides none.
        other |= {f"runtime:{_canonical(match['runtime_fraction'])}"}
    path = next(f"{kind}:{_canonical(match[kind])}" for kind in ("prefix", "path", "safe_regex") if kind in match)
    labels = route.get("metadata", {}).get("filter_metadata", {}).get(METADATA, {})
    policy, class_name = str(labels.get("policy", "")), str(labels.get("class", ""))
    for key, script in route.get("typed_per_filter_config", {}).items():
        # It has no words of its own: it names a script of the listener, which sets one header and reads no other.
        kind = script["@type"].rpartition("/")[2]
        if (key, script.get("name"), kind) != ("tierwise.prefix", "prefix", _LUA_OF_ROUTE):
            raise Unknown(f"route {name} configures the filter {key}")
        only(script, _SCRIPT, f"the script of route {name}")
    if ("route" in route) == ("direct_response" in route):
        raise Unknown(f"route {name} neither answers nor leads to tiers, or both")
    clusters = tuple(dict.fromkeys(_reached(route["route"], name))) if "route" in route else ()
    return _Taken(name, path, other, levels, policy, class_name, clusters)


def _reached(action: Resource, name: str) -> Iterator[str]:
    only(action, _ACTION, f"the action of route {name}")
    only(action.get("retry_policy", {}), _RETRIES, f"the retries of route {name}")
    config = action["inline_cluster_specifier_plugin"]["extension"]["typed_config"]
    if config["@type"].rpartition("/")[2] != _GROUPS:
        raise Unknown(f"route {name} chooses its cluster by {config['@type']}")
    only(config, {"@type", "priority_groups", "use_hash_policy"}, f"the clusters of route {name}")
    for group in config["priority_groups"]:
        only(group, {"name", "clusters"}, f"a group of route {name}")
        for one in group["clusters"]:
            only(one, {"cluster_name", "weight"}, f"a cluster of route {name}")
            yield str(one["cluster_name"])
    for mirror in action.get("request_mirror_policies", ()):
        yield _copied_to(mirror, name)


def _copied_to(mirror: Resource, name: str) -> str:
    """The tier's cluster that a copy ends at: by the one header that says so, whose value nothing else may change."""
    only(mirror, _MIRROR, f"a mirror of route {name}")
    if mirror["cluster"] != _COPIES:
        return str(mirror["cluster"])
    said: list[str] = []
    for mutation in mirror["request_headers_mutations"]:
        only(mutation, {"append"}, f"a mirror of route {name}")
        only(mutation["append"], {"header", "append_action"}, f"a mirror of route {name}")
        header = mutation["append"]["header"]
        only(header, {"key", "value"}, f"a mirror of route {name}")
        if header["key"].lower() != _COPY_FOR:
            continue
        if mutation["append"].get("append_action") != "OVERWRITE_IF_EXISTS_OR_ADD" or "%" in header["value"]:
            raise Unknown(f"a mirror of route {name} does not say plainly where copies go")
        said.append(str(header["value"]))
    if len(said) != 1:
        raise Unknown(f"a mirror of route {name} says {len(said)} times where copies go")
    return said[0]


def _condition(header: Resource) -> _Condition:
    inverted = bool(header.get("invert_match", False))
    if header.get("present_match") is True:
        only(header, {"name", "present_match", "invert_match"}, "a condition on the sensitivity")
        return _Condition(None, inverted)
    only(header, {"name", "string_match", "invert_match"}, "a condition on the sensitivity")
    only(header["string_match"], {"safe_regex"}, "a condition on the sensitivity")
    return _Condition(str(header["string_match"]["safe_regex"]["regex"]), inverted)


def _canonical(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_canonical(value[name])}" for name in sorted(value)) + "}"
    return repr(value)
