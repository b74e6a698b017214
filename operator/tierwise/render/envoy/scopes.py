"""Which namespace's routes a request gets: `namespace/model` names it, else the hostname does."""

from collections.abc import Iterable

from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import DEFAULT_ROUTES
from tierwise.render.envoy.protos import SCOPE

BY_NAMESPACE = "n:"
BY_HOSTNAME = "h:"
DEFAULT = "d:"


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


def default() -> dict[str, Resource]:
    """Requests that belong to no namespace: without a model, or with a body that can not be read."""
    return {DEFAULT: scope(DEFAULT, DEFAULT_ROUTES)}
