"""Names that the parts of the configuration share, and the small shapes that Envoy's JSON repeats."""

from collections.abc import Mapping
from typing import Any

from tierwise.render.envoy.protos import TYPE_PREFIX

# Request headers between the gateway's own filters. Clients can not set them: the listener removes every one first.
MODEL_HEADER = "x-tierwise-model"
REQUESTED_HEADER = "x-tierwise-requested"
SCOPE_HEADER = "x-tierwise-scope"
BYTES_HEADER = "x-tierwise-bytes"
CLIENT_HEADER = "x-tierwise-client"
ISSUER_HEADER = "x-tierwise-issuer"
SUBJECT_HEADER = "x-tierwise-subject"
IDENTITY_HEADER = "x-tierwise-identity"
CONSUMER_HEADER = "x-tierwise-consumer"
# Not "x-tierwise-output-tokens": the engine simulator takes its word for how long an answer is.
OUTPUT_HEADER = "x-tierwise-max-output"
THROTTLE_HEADER = "x-tierwise-throttle"
PREFIX_HEADER = "x-tierwise-prefix"
PROVIDER_HEADER = "x-tierwise-provider"
ROUTE_HEADER = "x-tierwise-route"
REQUEST_UNITS_HEADER = "x-tierwise-request-units"
GUARD_HEADER = "x-tierwise-guard"
# On the way to a tier with an endpoint picker: see `picker`.
PICK_HEADER = "x-tierwise-pick"
PICK_STEP_HEADER = "x-tierwise-pick-step"
PICK_AGAIN_HEADER = "x-tierwise-pick-again"
PICKER_HEADER = "x-tierwise-picker"
DESTINATION_HEADER = "x-gateway-destination-endpoint"
"""In which an endpoint picker says, by its contract, the address of the replica."""
TOKEN_UNITS_HEADER = "x-tierwise-token-units"  # noqa: S105 - the other kind of token

# Request headers between the route that has a request copied and the listener that takes copies.
SHADOW_HEADER = "x-tierwise-shadow"
"""Cluster (`namespace/tier`) that a copy is for."""
SHADOW_LABELS = {name: f"x-tierwise-shadow-{name}" for name in ("namespace", "policy", "class")}
"""Whose a copy is."""
SHADOW_OUTPUT_HEADER = "x-tierwise-shadow-max-output"
"""Most output tokens of a copy that states none."""

GATEWAY_HEADERS = (
    MODEL_HEADER,
    REQUESTED_HEADER,
    SCOPE_HEADER,
    BYTES_HEADER,
    CLIENT_HEADER,
    ISSUER_HEADER,
    SUBJECT_HEADER,
    IDENTITY_HEADER,
    CONSUMER_HEADER,
    OUTPUT_HEADER,
    THROTTLE_HEADER,
    PREFIX_HEADER,
    PROVIDER_HEADER,
    ROUTE_HEADER,
    REQUEST_UNITS_HEADER,
    TOKEN_UNITS_HEADER,
    GUARD_HEADER,
    PICK_HEADER,
    PICK_AGAIN_HEADER,
    PICK_STEP_HEADER,
    PICKER_HEADER,
    DESTINATION_HEADER,
    SHADOW_HEADER,
    *SHADOW_LABELS.values(),
    SHADOW_OUTPUT_HEADER,
)
"""All of these: clients can not set them, and no tier gets to see them."""

# What clients may send, and what they get back.
SENSITIVITY_HEADER = "x-tierwise-sensitivity"
TIER_HEADER = "x-tierwise-tier"
ATTEMPTS_HEADER = "x-tierwise-attempts"
HELD_HEADER = "x-tierwise-held"
UNREACHED_HEADER = "x-tierwise-unreached"
SATURATED_HEADER = "x-tierwise-saturated"

METADATA = "tierwise"
"""Namespace of our filter metadata on routes and clusters, and of the request's dynamic metadata."""
USAGE_METADATA = "tierwise.usage"
PREFIX_FILTER = "tierwise.prefix"
PATH_STATE = "tierwise.path"
CONSUMER_STATE = "tierwise.consumer"
BOUND_METADATA = "tierwise.bound"
"""What a stream can have cost so far (`stream`, tokens) and its choices, where they are several."""
# The most tokens that an attempt can have cost, or `NO_BOUND`. Names that HTTP/1.1 does not send: `lua.SOURCE`.
PROMPT_BOUND = ":tierwise-prompt"
COMPLETION_BOUND = ":tierwise-completion"
OUTPUT_STATE = "tierwise.output_tokens"
"""Of a copy: most output tokens when it states none. Of other requests the route's metadata says it."""
CONSUMER_COPY = ":tierwise-consumer"
"""Who called, for the log of an attempt: as the bounds, it reaches no tier."""
NO_BOUND = "-"

DEFAULT_ROUTES = "tierwise/default"
"""The RouteConfiguration that belongs to no namespace (a namespace's name has no slash)."""
LISTENER_NAME = "tierwise"
RELAY_LISTENER = "tierwise/providers"
PICKER_LISTENER = "tierwise/pickers"
GUARD_LISTENER = "tierwise/guard"
NO_MODEL = "-"
BAD_BODY = "!"

ADS: dict[str, Any] = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}


def typed(message: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """A message with its type."""
    return {"@type": TYPE_PREFIX + message, **fields}


def extension(name: str, message: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    """A named extension with typed configuration."""
    return {"name": name, "typed_config": typed(message, **fields)}


def set_header(key: str, value: str) -> dict[str, Any]:
    """A HeaderValueOption that replaces whatever stands there."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def metadata(**fields: str) -> dict[str, Any]:
    """Our metadata on a route or cluster."""
    return {"filter_metadata": {METADATA: fields}}


def seconds(value: float) -> str:
    """A protobuf duration."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One dict of several; later ones win."""
    return {key: value for part in parts for key, value in part.items()}
