"""The listener's HTTP filters, in the order in which a request passes them.

Each is its own function: several are marked work in progress upstream, and one that changes shall change here only.

None of them depends on a tier or a policy: a change of either never touches the listener, whose replacement would
drain its connections.
"""

from typing import Any

from tierwise.render.envoy import (
    accesslog,
    clients,
    consumers,
    lua,
    models,
    prefix_lua,
    request_limits,
    throttle,
)
from tierwise.render.envoy.fields import (
    BAD_BODY,
    BYTES_HEADER,
    CLIENT_HEADER,
    CONSUMER_HEADER,
    CONSUMER_STATE,
    GATEWAY_HEADERS,
    IDENTITY_HEADER,
    ISSUER_HEADER,
    METADATA,
    MODEL_HEADER,
    NO_MODEL,
    OUTPUT_HEADER,
    PATH_STATE,
    PREFIX_FILTER,
    REQUESTED_HEADER,
    SCOPE_HEADER,
    SUBJECT_HEADER,
    USAGE_METADATA,
    extension,
    set_header,
)
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.scopes import BY_CALLER, BY_HOSTNAME, BY_NAMESPACE, DEFAULT, WITHIN

_HTTP = "envoy.extensions.filters.http"
_JSON_TYPES = {"regex": "application/json.*"}

INTERNAL_HEADERS = (
    *GATEWAY_HEADERS,
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

_MODEL = f"metadata.filter_metadata['{METADATA}']['model']"
_METHOD = "request.headers[':method']"
_PATH = "request.url_path"
_MODEL_PATH = f"^{models.PREFIX}[A-Za-z0-9._:/-]+$"
# A hostname of nobody: an address, this Service's own name, or a port-forward's.
_ANONYMOUS_HOST = r"^([0-9.]+|\\[.*\\]|localhost|[a-z0-9-]+|.*\\.svc(\\..*)?)$"


def strip_internal_headers() -> dict[str, Any]:
    """Clients can not set what the gateway's own filters set."""
    return extension(
        "tierwise.strip",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=[*({"remove": name} for name in sorted(INTERNAL_HEADERS)), clients.short_request_id()],
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
        request_rules={
            "allow_content_types_regex": _JSON_TYPES,
            "rules": [model, stream, usage, *request_limits.reading()],
        },
    )


_ASKED = f"request.headers['{REQUESTED_HEADER}']"
_REQUESTED = (
    f"{_METHOD} == 'GET' && {_PATH}.size() <= 512 && {_PATH}.matches('{_MODEL_PATH}') ? "
    f"{_PATH}.substring({len(models.PREFIX)}) : "
    f"{_METHOD} != 'POST' ? '{NO_MODEL}' : "
    f"{_MODEL}.size() <= 512 && {_MODEL}.matches('^([A-Za-z0-9._:/-]+|{BAD_BODY})$') ? {_MODEL} : '?'"
)
_SUBJECT = f"request.headers['{SUBJECT_HEADER}']"
_BY_TOKEN = f"'{SUBJECT_HEADER}' in request.headers"
# Without a Content-Length: what has been received, which is all of it, since `model_of_body` waits for the end.
_SIZE = "string(request.size)"
_OUTPUT = f"{_METHOD} != 'POST' ? '0' : {request_limits.most_output()}"


def _of_anybody() -> dict[str, str]:
    """Nobody is asked who calls: the model or the hostname names the namespace."""
    host = "request.host.lowerAscii()"
    return {
        SCOPE_HEADER: (
            f"{_ASKED} == '{BAD_BODY}' ? '{DEFAULT}' : "
            f"{_ASKED} == '{NO_MODEL}' && ({_METHOD} != 'GET' || {host}.matches('{_ANONYMOUS_HOST}')) ? '{DEFAULT}' : "
            f"{_ASKED}.contains('/') ? '{BY_NAMESPACE}' + {_ASKED}.split('/')[0] : '{BY_HOSTNAME}' + {host}"
        )
    }


def _of_callers() -> dict[str, str]:
    """Who calls decides. Nothing of what the filters before could not verify leads anywhere."""
    client, caller = f"request.headers['{CLIENT_HEADER}']", f"request.headers['{IDENTITY_HEADER}']"
    issuer = f"request.headers['{ISSUER_HEADER}']"
    fits = f"{_SUBJECT}.size() <= {consumers.MAX_SUBJECT} && {_SUBJECT}.matches('{consumers.SUBJECT}')"
    by_token = f"{fits} ? {issuer} + '#' + {_SUBJECT} : '?'"
    return {
        IDENTITY_HEADER: f"{_BY_TOKEN} ? ({by_token}) : {client}",
        CONSUMER_HEADER: f"{_BY_TOKEN} ? {_SUBJECT} : {client}.split('/')[1]",
        SCOPE_HEADER: (
            f"{_ASKED} == '{BAD_BODY}' || ({_ASKED} == '{NO_MODEL}' && {_METHOD} != 'GET') ? '{DEFAULT}' : "
            f"'{BY_CALLER}' + {caller} + ({_ASKED}.contains('/') ? '{WITHIN}' + {_ASKED}.split('/')[0] : '')"
        ),
    }


def routing_headers(*, authenticated: bool) -> dict[str, Any]:
    """What routes are chosen by: the requested model as text, the scope, the model within it, and the body's size."""
    model = f"!{_ASKED}.contains('/') ? {_ASKED} : {_ASKED}.split('/').size() == 2 ? {_ASKED}.split('/')[1] : '?'"
    values = {
        REQUESTED_HEADER: _REQUESTED,
        **(_of_callers() if authenticated else _of_anybody()),
        MODEL_HEADER: model,
        BYTES_HEADER: _SIZE,
        OUTPUT_HEADER: _OUTPUT,
    }
    cel = extension(
        "envoy.formatter.cel",
        "envoy.extensions.formatter.cel.v3.Cel",
        cel_config={
            "enable_string_conversion": True,
            "enable_string_concat": True,
            "enable_string_functions": True,
        },
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
    """Keep path and consumer for every attempt, and look for a route again now that the headers are there."""

    def kept(name: str, value: str) -> dict[str, Any]:
        return {
            "object_key": name,
            "factory_key": "envoy.string",
            "format_string": {"text_format_source": {"inline_string": value}},
        }

    return extension(
        "tierwise.route",
        f"{_HTTP}.set_filter_state.v3.Config",
        clear_route_cache=True,
        on_request_headers=[kept(PATH_STATE, "%PATH(NQ)%"), kept(CONSUMER_STATE, f"%REQ({CONSUMER_HEADER})%")],
    )


def start_of_prompt() -> dict[str, Any]:
    """Nothing, but on routes that name its script: see `prefix_lua`."""
    return extension(
        PREFIX_FILTER,
        f"{_HTTP}.lua.v3.Lua",
        source_codes={prefix_lua.NAME: {"inline_string": prefix_lua.SOURCE}},
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
        upstream_log=accesslog.arrivals() + accesslog.refusals() + accesslog.saturations() + accesslog.lost(),
        upstream_log_options={"flush_upstream_log_on_upstream_stream": True},
    )


def chain(options: GatewayOptions) -> list[dict[str, Any]]:
    """All of them, in order."""
    authentication = options.authentication
    return [
        *(consumers.filters(authentication) if authentication is not None else ()),
        model_of_body(),
        routing_headers(authenticated=authentication is not None),
        choose_route_again(),
        *throttle.filters(),
        start_of_prompt(),
        usage_of_stream_stays_here(),
        usage_of_stream(),
        usage_of_body(),
        router(),
    ]
