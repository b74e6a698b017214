"""What clients get when no tier answers: bodies of OpenAI's shape that name the policy and the reason."""

import json
from datetime import UTC
from email.utils import format_datetime
from typing import Any

from tierwise.core.ceiling import Denied
from tierwise.render.envoy.fields import (
    ATTEMPTS_HEADER,
    METADATA,
    REQUESTED_HEADER,
    TIER_HEADER,
    extension,
    set_header,
)

_JSON = [set_header("content-type", "application/json")]
_ASKED = f"%REQ({REQUESTED_HEADER})%"
_POLICY = f"RoutingPolicy %METADATA(ROUTE:{METADATA}:namespace)%/%METADATA(ROUTE:{METADATA}:policy)%"
_CLASS = f"class %METADATA(ROUTE:{METADATA}:class)%"

RETRY_AFTER_SECONDS = "5"
"""What clients are told to wait when the gateway is short of memory."""


UNATTENDED_RETRY_SECONDS = "60"
"""And when nobody decides about a budget."""


def error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body, as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def direct(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """The part of a route that answers by itself."""
    return {
        "direct_response": {"status": status, "body": {"inline_string": json.dumps(body, sort_keys=True)}},
        "response_headers_to_add": _JSON,
    }


def formatted(status: int, body: dict[str, Any]) -> dict[str, Any]:
    """As `direct`, with command operators in the body."""
    return {
        "direct_response": {"status": status, "body_format": {"json_format": body}},
        "response_headers_to_add": _JSON,
    }


def unknown_model(namespace: str) -> dict[str, Any]:
    """404: the namespace has no policy for this model."""
    message = f"The model '{_ASKED}' does not exist: no RoutingPolicy in namespace {namespace} lists it in spec.models"
    return formatted(404, error(message, "invalid_request_error", "model_not_found", "model"))


def no_class(policy: str) -> dict[str, Any]:
    """400: no class of the policy takes the request."""
    message = f"No class of RoutingPolicy {policy} matches this request"
    return direct(400, error(message, "invalid_request_error", "no_matching_class"))


def prompt_too_long(policy: str, class_name: str, tokens: int, size: int) -> dict[str, Any]:
    """400: the prompt is longer than the class takes; `tokens` and what that is in bytes."""
    message = (
        f"Class {class_name} of RoutingPolicy {policy} takes prompts of up to {tokens} tokens "
        f"(limits.maxPromptTokens), estimated from the body's length: this body has {size} bytes or more. "
        "Shorten the prompt, or ask for another model"
    )
    return direct(400, error(message, "invalid_request_error", "context_length_exceeded"))


def output_too_long(policy: str, class_name: str, tokens: int) -> dict[str, Any]:
    """400: the request asks for a longer answer than the class gives."""
    message = (
        f"Class {class_name} of RoutingPolicy {policy} gives answers of up to {tokens} tokens "
        "(limits.maxOutputTokens): max_tokens, max_completion_tokens or max_output_tokens must be a number from 1 to "
        f"{tokens}. Lower it, or leave it out"
    )
    return direct(400, error(message, "invalid_request_error", "max_output_tokens_exceeded", "max_tokens"))


def not_cleared(policy: str, class_name: str, sensitivity: str) -> dict[str, Any]:
    """403: no tier of the class may see a request of this sensitivity."""
    message = f"No tier of class {class_name} in RoutingPolicy {policy} is cleared for requests that are {sensitivity}"
    return direct(403, error(message, "permission_error", "no_cleared_tier"))


def over_budget(namespace: str, denied: Denied) -> dict[str, Any]:
    """429: a budget denies. `Retry-After` is a date, which stays true however long the route lives."""
    until = denied.resets_at.astimezone(UTC)
    message = (
        f"NamespaceBudget {namespace}/{denied.budget} is exhausted: requests are denied until it resets at "
        f"{until:%Y-%m-%dT%H:%M:%SZ}"
    )
    answer = direct(429, error(message, "insufficient_quota", "budget_exceeded"))
    more = [
        set_header("retry-after", format_datetime(until, usegmt=True)),
        # OpenAI's clients try a 429 again at once, and again; this tells them not to.
        set_header("x-should-retry", "false"),
    ]
    return answer | {"response_headers_to_add": [*answer["response_headers_to_add"], *more]}


def not_priced(policy: str, class_name: str, budget: str) -> dict[str, Any]:
    """403: what the class's tiers cost is not known, and a budget wants to know."""
    message = (
        f"No tier of class {class_name} in RoutingPolicy {policy} that may answer this request has a price in the "
        f"currency of NamespaceBudget {budget}, whose spec.unpriced is Deny"
    )
    return direct(403, error(message, "permission_error", "no_priced_tier"))


def unattended(namespace: str, budget: str) -> dict[str, Any]:
    """503: nobody has decided about a budget for longer than it allows."""
    message = (
        f"NamespaceBudget {namespace}/{budget}: nobody has counted what is spent for longer than its "
        "spec.failureAfter, and spec.failurePolicy is Closed: requests are denied until the operator is back"
    )
    answer = direct(503, error(message, "server_error", "budget_unattended"))
    later = set_header("retry-after", UNATTENDED_RETRY_SECONDS)
    return answer | {"response_headers_to_add": [*answer["response_headers_to_add"], later]}


def no_tier(policy: str, class_name: str) -> dict[str, Any]:
    """503: none of the class's tiers exists."""
    message = f"No tier of class {class_name} in RoutingPolicy {policy} exists"
    return direct(503, error(message, "server_error", "no_tier_available"))


def missing_model() -> dict[str, Any]:
    """400: the body names no model."""
    return direct(
        400, error("'model' is required in the request body", "invalid_request_error", "missing_model", "model")
    )


def bad_body() -> dict[str, Any]:
    """400: the body can not be read."""
    message = "The request body is not a JSON object, has an integer beyond 64 bits, or is not sent as application/json"
    return direct(400, error(message, "invalid_request_error", "invalid_json"))


def unknown_endpoint() -> dict[str, Any]:
    """404: not a path of the OpenAI API that the gateway serves."""
    return direct(404, error("Unknown endpoint", "invalid_request_error", "unknown_endpoint"))


def answer_headers() -> list[dict[str, Any]]:
    """Which tier answered, or was the last to be asked, and how many attempts it took."""
    return [
        set_header(TIER_HEADER, f"%METADATA(CLUSTER:{METADATA}:tier)%"),
        set_header(ATTEMPTS_HEADER, "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ]


_THROTTLED = {
    "extension_filter": extension(
        "throttled",
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        expression=f"'{METADATA}.throttle' in xds.route_metadata.filter_metadata",
    )
}


def local_replies(*, authenticated: bool) -> dict[str, Any]:
    """What Envoy itself answers, in the same shape. Mapped on flags: a status could also be a route's own answer."""
    why = (
        f"The model '{_ASKED}' does not exist or you do not have access to it"
        if authenticated
        else f"The model '{_ASKED}' does not exist, or no RoutingPolicy has the hostname '%REQ(:AUTHORITY)%': "
        "use a hostname of a policy, or write the model as namespace/model"
    )
    unrouted = error(
        why,
        "invalid_request_error",
        "model_not_found",
        "model",
    )
    unavailable = error(
        f"No tier of {_POLICY}, {_CLASS}, could answer (%RESPONSE_FLAGS%: %RESPONSE_CODE_DETAILS%)",
        "server_error",
        "no_tier_available",
    )
    slow = error(f"No tier of {_POLICY}, {_CLASS}, answered in time", "server_error", "timeout")
    stranger = error(
        "No valid credential was presented: send the API key of a Consumer, or a token of a known issuer, "
        "as 'Authorization: Bearer ...'",
        "invalid_request_error",
        "invalid_api_key",
    )
    throttled = error(
        f"Requests of {_POLICY}, {_CLASS}, are throttled: NamespaceBudget "
        f"%METADATA(ROUTE:{METADATA}.throttle:budget)% is nearly exhausted until it resets at "
        f"%METADATA(ROUTE:{METADATA}.throttle:resets_at)%",
        "rate_limit_error",
        "budget_throttled",
    )
    busy = error("The gateway is short of memory: try again later", "server_error", "overloaded")
    late = error("The request did not arrive whole in time", "invalid_request_error", "request_timeout")
    headers = error("The request's headers are too large or too many", "invalid_request_error", "headers_too_large")
    over = error(
        f"{_POLICY}, {_CLASS}, gives a request no more time than this (limits.timeout)", "server_error", "timeout"
    )
    large = error("The request body is too large for this gateway", "invalid_request_error", "request_too_large")
    return {
        "mappers": [
            _mapper(_flags("NR"), unrouted, 404),
            _mapper(_details("response_timeout"), over, 504, asked=True),
            _mapper(_flags("UT", "SI", "UMSDR"), slow, 504, asked=True),
            _mapper(_flags("UH", "UF", "UC", "UO", "LR", "UR", "NC", "URX", "UPE"), unavailable, 503, asked=True),
            _mapper(_status(413), large, 413),
            _mapper(_status(401), stranger, 401),
            # Of a status: the flag is set too late. Routes that answer 429 by themselves have no bucket.
            _mapper({"and_filter": {"filters": [_status(429), _THROTTLED]}}, throttled, 429),
            _mapper(_details("overload"), busy, 503)
            | {"headers_to_add": [set_header("retry-after", RETRY_AFTER_SECONDS)]},
            _mapper(_status(408), late, 408),
            _mapper(_status(431), headers, 431),
        ]
    }


def _mapper(matches: dict[str, Any], body: dict[str, Any], status: int, *, asked: bool = False) -> dict[str, Any]:
    """`asked`: some tier was; the answer names the last one."""
    mapper = {"filter": matches, "status_code": status, "body_format_override": {"json_format": body}}
    return mapper | ({"headers_to_add": answer_headers()} if asked else {})


def _flags(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _details(text: str) -> dict[str, Any]:
    """What has no flag of its own."""
    cel = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": extension("cel", cel, expression=f"response.code_details == '{text}'")}


def _status(code: int) -> dict[str, Any]:
    value = {"default_value": code, "runtime_key": f"tierwise.status_{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
