"""The listener's HTTP filters, in the order in which a request passes them.

Each is its own function: several are marked work in progress upstream, and one that changes shall change here only.

None of them depends on a tier or a policy: a change of either never touches the listener, whose replacement would
drain its connections.
"""

from typing import Any

from tierwise.render.envoy import accesslog, lua
from tierwise.render.envoy.fields import (
    BAD_BODY,
    BYTES_HEADER,
    METADATA,
    MODEL_HEADER,
    NO_MODEL,
    PATH_STATE,
    REQUESTED_HEADER,
    SCOPE_HEADER,
    USAGE_METADATA,
    extension,
    set_header,
)
from tierwise.render.envoy.scopes import BY_HOSTNAME, BY_NAMESPACE, DEFAULT

_HTTP = "envoy.extensions.filters.http"
_JSON_TYPES = {"regex": "application/json.*"}

INTERNAL_HEADERS = (
    MODEL_HEADER,
    REQUESTED_HEADER,
    SCOPE_HEADER,
    BYTES_HEADER,
    # These steer Envoy's router: time-outs, retries and where a request goes are the policy's.
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-stream-duration-ms",
)

LARGEST = "4000000000000000000"
"""Bytes of a body whose length is not known beforehand."""

_MODEL = f"metadata.filter_metadata['{METADATA}']['model']"
_METHOD = "request.headers[':method']"
# A hostname of nobody: an address, this Service's own name, or a port-forward's.
_ANONYMOUS_HOST = r"^([0-9.]+|\\[.*\\]|localhost|[a-z0-9-]+|.*\\.svc(\\..*)?)$"


def strip_internal_headers() -> dict[str, Any]:
    """Clients can not set what the gateway's own filters set."""
    return extension(
        "tierwise.strip",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[{"remove": name} for name in sorted(INTERNAL_HEADERS)],
    )


def model_of_body() -> dict[str, Any]:
    """`model` of the JSON body to metadata (the last one when it stands twice), and what is said about streaming."""

    def value(text: str) -> dict[str, Any]:
        return {"metadata_namespace": METADATA, "key": "model", "value": text}

    model = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": METADATA, "key": "model", "type": "STRING"},
        "on_missing": value(NO_MODEL),
        "on_error": value(BAD_BODY),
    }
    stream = {"selectors": [{"key": "stream"}], "on_present": {"metadata_namespace": METADATA, "key": "stream"}}
    usage = {
        "selectors": [{"key": "stream_options"}, {"key": "include_usage"}],
        "on_present": {"metadata_namespace": METADATA, "key": "include_usage"},
    }
    return extension(
        "tierwise.body",
        f"{_HTTP}.json_to_metadata.v3.JsonToMetadata",
        request_rules={"allow_content_types_regex": _JSON_TYPES, "rules": [model, stream, usage]},
    )


def routing_headers() -> dict[str, Any]:
    """What routes are chosen by: the requested model as text, the scope, the model within it, and the body's size."""
    host = "request.host.lowerAscii()"
    asked = f"request.headers['{REQUESTED_HEADER}']"
    requested = (
        f"{_METHOD} != 'POST' ? '{NO_MODEL}' : "
        f"{_MODEL}.size() <= 512 && {_MODEL}.matches('^([A-Za-z0-9._:/-]+|{BAD_BODY})$') ? {_MODEL} : '?'"
    )
    scope = (
        f"{asked} == '{BAD_BODY}' ? '{DEFAULT}' : "
        f"{asked} == '{NO_MODEL}' && ({_METHOD} != 'GET' || {host}.matches('{_ANONYMOUS_HOST}')) ? '{DEFAULT}' : "
        f"{asked}.contains('/') ? '{BY_NAMESPACE}' + {asked} : '{BY_HOSTNAME}' + {host}"
    )
    model = f"!{asked}.contains('/') ? {asked} : {asked}.split('/').size() == 2 ? {asked}.split('/')[1] : '?'"
    size = f"'content-length' in request.headers ? request.headers['content-length'] : '{LARGEST}'"
    values = {REQUESTED_HEADER: requested, SCOPE_HEADER: scope, MODEL_HEADER: model, BYTES_HEADER: size}
    cel = extension(
        "envoy.formatter.cel",
        "envoy.extensions.formatter.cel.v3.Cel",
        cel_config={"enable_string_concat": True, "enable_string_functions": True},
    )
    return extension(
        "tierwise.headers",
        f"{_HTTP}.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": [{"append": set_header(key, f"%CEL({text})%")} for key, text in values.items()],
            "formatters": [cel],
        },
    )


def choose_route_again() -> dict[str, Any]:
    """Keep the client's path for every attempt, and look for a route again now that the headers are there."""
    path = {
        "object_key": PATH_STATE,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": "%PATH(NQ)%"}},
    }
    return extension(
        "tierwise.route",
        f"{_HTTP}.set_filter_state.v3.Config",
        clear_route_cache=True,
        on_request_headers=[path],
    )


_USAGE = (
    ("prompt", ("usage", "prompt_tokens")),
    ("completion", ("usage", "completion_tokens")),
    ("cached", ("usage", "prompt_tokens_details", "cached_tokens")),
)
_USAGE_OF_RESPONSE = (  # as /v1/responses names them
    ("prompt", ("usage", "input_tokens")),
    ("completion", ("usage", "output_tokens")),
    ("cached", ("usage", "input_tokens_details", "cached_tokens")),
)
# The last event of a stream of /v1/responses holds the whole response.
_USAGE_OF_EVENT = tuple((name, ("response", *path)) for name, path in _USAGE_OF_RESPONSE)
_LARGEST_EVENT = 1 << 20  # bytes


def _usage_rules(rules: tuple[tuple[str, tuple[str, ...]], ...]) -> list[dict[str, Any]]:
    return [
        {
            "selectors": [{"key": key} for key in path],
            "on_present": {"metadata_namespace": USAGE_METADATA, "key": name, "type": "NUMBER"},
        }
        for name, path in rules
    ]


def usage_of_stream_stays_here() -> dict[str, Any]:
    """A client that did not ask for the usage event does not get it. Before the filter that reads it: answers go up."""
    return extension(
        "tierwise.stream",
        f"{_HTTP}.lua.v3.Lua",
        default_source_code={"inline_string": lua.CLIENT_SOURCE},
    )


def usage_of_stream() -> dict[str, Any]:
    """Token counts of a streamed answer to metadata."""
    parser = extension(
        "json",
        "envoy.extensions.content_parsers.json.v3.JsonContentParser",
        rules=[{"rule": rule} for rule in _usage_rules(_USAGE + _USAGE_OF_EVENT)],
    )
    return extension(
        "tierwise.stream_usage",
        f"{_HTTP}.sse_to_metadata.v3.SseToMetadata",
        response_rules={"max_event_size": _LARGEST_EVENT, "content_parser": parser},
    )


def usage_of_body() -> dict[str, Any]:
    """Token counts of an answer in one piece to metadata."""
    return extension(
        "tierwise.usage",
        f"{_HTTP}.json_to_metadata.v3.JsonToMetadata",
        response_rules={"allow_content_types_regex": _JSON_TYPES, "rules": _usage_rules(_USAGE + _USAGE_OF_RESPONSE)},
    )


def router() -> dict[str, Any]:
    """Sends the request on."""
    return extension(
        "envoy.filters.http.router",
        f"{_HTTP}.router.v3.Router",
        upstream_log=accesslog.arrivals() + accesslog.lost(),
        upstream_log_options={"flush_upstream_log_on_upstream_stream": True},
    )


def chain() -> list[dict[str, Any]]:
    """All of them, in order."""
    return [
        model_of_body(),
        routing_headers(),
        choose_route_again(),
        usage_of_stream_stays_here(),
        usage_of_stream(),
        usage_of_body(),
        router(),
    ]
