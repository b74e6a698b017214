"""Which namespace's routes a request gets: its caller's.

Where nobody is asked who calls, `namespace/model` names it, else the hostname does.
"""

from collections.abc import Iterable

from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import DEFAULT_ROUTES
from tierwise.render.envoy.protos import SCOPE

BY_NAMESPACE = "n:"
BY_HOSTNAME = "h:"
BY_CALLER = "c:"
DEFAULT = "d:"
WITHIN = ","
"""Between a caller and the namespace that it asks for; no identity has one after its `#`, nor a name."""
SEPARATOR = " "
"""Ends a scope's key; no namespace, hostname or caller has one."""


def scope(key: str, routes: str) -> Resource:
    """Requests with this scope key get these routes. `on_demand` is off: routes are there before the first request."""
    return {
        "@type": SCOPE,
        "name": key,
        "route_configuration_name": routes,
        "key": {"fragments": [{"string_key": key}]},
    }


def of_namespace(namespace: str, hostnames: Iterable[str]) -> dict[str, Resource]:
    """The namespace's own scope and one per hostname that it owns, by name."""
    keys = [BY_NAMESPACE + namespace, *(BY_HOSTNAME + hostname for hostname in hostnames)]
    return {key: scope(key, namespace) for key in sorted(keys)}


def of_callers(namespace: str, callers: Iterable[str]) -> dict[str, Resource]:
    """Scopes of those who may call the namespace's models, by name; keys as `caller_keys` gives them."""
    return {key: scope(key, namespace) for key in sorted(callers)}


def caller_keys(namespace: str, identities: Iterable[str], first: Iterable[str]) -> tuple[str, ...]:
    """Keys of a namespace's scopes.

    Args:
        namespace: that they lead to.
        identities: who may call its models, as `namespace/model`.
        first: of these, who need not write the namespace.
    """
    named = {f"{BY_CALLER}{each}{WITHIN}{namespace}" for each in identities}
    return tuple(sorted(named | {BY_CALLER + each for each in first}))


def default() -> dict[str, Resource]:
    """Requests that belong to no namespace: without a model, or with a body that can not be read."""
    return {DEFAULT: scope(DEFAULT, DEFAULT_ROUTES)}
