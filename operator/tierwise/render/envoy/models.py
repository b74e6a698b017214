"""The answers to GET /v1/models and GET /v1/models/{model}."""

from collections.abc import Mapping
from typing import Any

from tierwise.api.routing_policy import RoutingPolicy
from tierwise.render.envoy import errors
from tierwise.render.envoy.fields import REQUESTED_HEADER

_GET = [{"name": ":method", "string_match": {"exact": "GET"}}]
MATCH: dict[str, Any] = {"path": "/v1/models", "headers": _GET}
MAX_BYTES = 4 << 20
"""Of a list. Envoy's own limit is 4 KiB, about 35 models: one more, and it would refuse all routes."""
PREFIX = "/v1/models/"
"""Before the name of one model; what follows is the model that such a request asks for."""


def entries(
    namespace: str, policies: Mapping[str, RoutingPolicy], owners: Mapping[str, str], *, qualified: bool
) -> list[dict[str, Any]]:
    """One entry per model; `qualified` names are `namespace/model`."""
    found = []
    for model, owner in sorted(owners.items()):
        found.append(_entry(f"{namespace}/{model}" if qualified else model, namespace, policies[owner]))
    return found


def _entry(name: str, namespace: str, policy: RoutingPolicy) -> dict[str, Any]:
    created = policy.metadata.creation_timestamp
    seconds = int(created.timestamp()) if created is not None else 0
    return {"id": name, "object": "model", "created": seconds, "owned_by": namespace}


def one(namespace: str, policy: RoutingPolicy) -> dict[str, Any]:
    """The route that tells of one model, by the name that it was asked for; among the routes of this model only."""
    return {
        "match": {"prefix": PREFIX, "headers": _GET},
        **errors.formatted(200, _entry(f"%REQ({REQUESTED_HEADER})%", namespace, policy)),
    }


def answer(data: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of a route that lists models."""
    return errors.direct(200, {"object": "list", "data": data})


def listing(
    namespace: str, policies: Mapping[str, RoutingPolicy], owners: Mapping[str, str], *, qualified: bool
) -> dict[str, Any]:
    """The models of one namespace."""
    return answer(entries(namespace, policies, owners, qualified=qualified))
