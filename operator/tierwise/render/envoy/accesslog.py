"""What the gateway counts, and the line it writes, for each request.

Counters and histograms appear in Prometheus as `envoy_tierwise_*`; their labels are namespace, policy, class, tier
(that of the last attempt; `-` when the gateway answered by itself), on what is paid for consumer too (its name, or its
token's).

Tokens that an upstream reported are counted exactly; `usage_requests` says for how many requests. What it did not
report is bounded from above and counted apart, one attempt at one tier at a time, with a `reason`:
- `unreported`: a whole answer, without its usage;
- `aborted`: the client left, or the upstream broke off, after the attempt had been sent;
- `discarded`: an attempt whose answer was thrown away, or that timed out or broke off before one; its tier may bill it.
Answers with an error status cost nothing. An attempt that nothing bounds adds to `unbounded_attempts`.

A request is counted twice: in `arrivals` when its first attempt goes to a tier (or, where none of that tier's endpoints
takes it, when it ends), in `requests` when it ends. An answer takes ten seconds and more; a loop that saw demand only
when it is over would be that late at every rise. What a saturated tier passes on has
arrived there, and adds to `saturated`; each attempt after the first adds to `retries`. So `arrivals + retries -
saturated` is what a tier took.
"""

from typing import Any

from tierwise.render.envoy.fields import (
    BOUND_METADATA,
    COMPLETION_BOUND,
    CONSUMER_COPY,
    CONSUMER_STATE,
    METADATA,
    NO_BOUND,
    PROMPT_BOUND,
    SATURATED_HEADER,
    UNREACHED_HEADER,
    USAGE_METADATA,
    extension,
    typed,
)

PREFIX = "tierwise"
_FIRST_BYTE = "%COMMON_DURATION(DS_RX_END:US_RX_BODY_BEG:ms)%"
_LABELS = {
    "namespace": f"%METADATA(ROUTE:{METADATA}:namespace)%",
    "policy": f"%METADATA(ROUTE:{METADATA}:policy)%",
    "class": f"%METADATA(ROUTE:{METADATA}:class)%",
    "tier": f"%METADATA(CLUSTER:{METADATA}:tier)%",
}
# Bounded: requests of callers that no Consumer stands for reach no route. "-" where nobody is asked who calls. On what
# is paid for only, not on histograms with their forty series each. The router's own log knows no filter state.
_CONSUMER = {"consumer": f"%FILTER_STATE({CONSUMER_STATE}:PLAIN)%"}
_CONSUMER_OF_ATTEMPT = {"consumer": f"%REQ({CONSUMER_COPY})%"}
# Only requests that reached a policy: others would be labelled by whatever clients invent.
_ROUTED = f"xds.route_metadata.filter_metadata['{METADATA}']['policy'] != ''"
_ANSWERED = f"{_ROUTED} && response.code < 300"

# What `lua.SOURCE` noted: the filters of some tier have had the request.
_SENT = f"{_ROUTED} && '{COMPLETION_BOUND}' in request.headers"
_PROMPT = f"request.headers['{PROMPT_BOUND}']"
_COMPLETION = f"request.headers['{COMPLETION_BOUND}']"
_DETAILS = "response.code_details"
_WHOLE = f"({_DETAILS} == 'via_upstream')"
# How requests end whose last attempt is already over, without an answer: `lost` has counted it, or it cost nothing.
_NOTHING_CAME = " || ".join(
    f"{_DETAILS}.startsWith('{start}')"
    for start in (
        "upstream_reset_before_response_started",
        "upstream_per_try_timeout",
        "upstream_response_timeout",
        "no_healthy_upstream",
        "cluster_not_found",
    )
)
# Where an upstream broke off an answer in one piece, the status is the gateway's own: 503.
_MAY_HAVE_COST = (
    f"{_WHOLE} ? response.code >= 200 && response.code < 300 : "
    f"!({_NOTHING_CAME}) && !({_DETAILS}.startsWith('downstream') && has(response.code) && response.code >= 300)"
)
# How an attempt ends that got no answer: time-out, reset by the upstream, connection closed, no HTTP, reset by Envoy.
_LOST_FLAGS = ("UT", "UR", "UC", "UPE", "LR")


def _tags(consumer: dict[str, str] | None = None, **more: str) -> list[dict[str, str]]:
    labels = _LABELS | (consumer or {})
    tags = [{"name": f"tierwise_{name}", "value_format": value} for name, value in labels.items()]
    return tags + [{"name": name, "value_format": value} for name, value in more.items()]


def _stats(**metrics: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
    return typed("envoy.extensions.access_loggers.stats.v3.Config", stats_scope={"prefix": PREFIX}, **metrics)


def _one(name: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    return {"stat": {"name": name, "tags": tags}, "value_fixed": 1}


def _tokens(name: str, key: str) -> dict[str, Any]:
    return {
        "stat": {"name": name, "tags": _tags(_CONSUMER)},
        "value_format": f"%DYNAMIC_METADATA({USAGE_METADATA}:{key})%",
    }


def _milliseconds(name: str, value: str) -> dict[str, Any]:
    return {"stat": {"name": name, "tags": _tags()}, "unit": "Milliseconds", "value_format": value}


def _when(expression: str) -> dict[str, Any]:
    cel = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {"extension_filter": extension("cel", cel, expression=expression)}


def _reported(key: str) -> dict[str, Any]:
    """The answer reported this count: without the filter, each that did not would be an error in the log."""
    matcher = {"filter": USAGE_METADATA, "path": [{"key": key}], "value": {"present_match": True}}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}


def statistics() -> list[dict[str, Any]]:
    """Loggers that count."""
    return [
        {
            "name": "requests",
            "filter": _when(_ROUTED),
            "typed_config": _stats(counters=[_one("requests", _tags(_CONSUMER, code="%RESPONSE_CODE%"))]),
        },
        {
            "name": "unsent",
            "filter": {"and_filter": {"filters": [_when(_ROUTED), {"response_flag_filter": {"flags": ["UH"]}}]}},
            "typed_config": _stats(counters=[_one("arrivals", _tags())]),
        },
        {
            "name": "latency",
            "filter": _when(_ANSWERED),
            "typed_config": _stats(
                histograms=[_milliseconds("duration", "%DURATION%"), _milliseconds("ttfb", _FIRST_BYTE)]
            ),
        },
        {
            "name": "usage",
            "filter": _reported("prompt"),
            "typed_config": _stats(
                counters=[_one("usage_requests", _tags(_CONSUMER)), _tokens("prompt_tokens", "prompt")]
            ),
        },
        {
            "name": "completion",
            "filter": _reported("completion"),
            "typed_config": _stats(counters=[_tokens("completion_tokens", "completion")]),
        },
        {
            "name": "cached",
            "filter": _reported("cached"),
            "typed_config": _stats(counters=[_tokens("cached_prompt_tokens", "cached")]),
        },
        estimates(),
    ]


def arrivals() -> list[dict[str, Any]]:
    """The router's own loggers: count when a request's first attempt goes to a tier, or ends without a connection.

    Later attempts are counted apart.
    """
    first = _when(f"{_ROUTED} && request.headers['x-envoy-attempt-count'] == '1'")
    later = _when(f"{_ROUTED} && request.headers['x-envoy-attempt-count'] != '1'")
    begins = [{"log_type_filter": {"types": ["UpstreamPoolReady"]}}]
    fails = [
        {"log_type_filter": {"types": ["UpstreamEnd"]}},
        {"response_flag_filter": {"flags": ["UF", "UO"]}},
    ]
    return [
        {
            "name": name,
            "filter": {"and_filter": {"filters": [*condition, attempt]}},
            "typed_config": _stats(counters=[_one(counter, _tags())]),
        }
        for name, counter, condition, attempt in (
            ("arrivals", "arrivals", begins, first),
            ("unconnected", "arrivals", fails, first),
            ("retries", "retries", begins, later),
        )
    ]


def _status(code: int) -> dict[str, Any]:
    """0: there was none."""
    value = {"default_value": code, "runtime_key": f"tierwise.status_{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def refusals() -> list[dict[str, Any]]:
    """The router's own logger: counts attempts that a tier refused with 429, or that the gateway held back for it."""
    conditions: list[dict[str, Any]] = [{"log_type_filter": {"types": ["UpstreamEnd"]}}, _status(429)]
    return [
        {
            "name": "refused",
            "filter": {"and_filter": {"filters": [*conditions, _when(_ROUTED)]}},
            "typed_config": _stats(counters=[_one("refused", _tags())]),
        }
    ]


def saturations() -> list[dict[str, Any]]:
    """The router's own logger: counts attempts that a saturated tier passed on. They cost nothing and are no error."""
    conditions: list[dict[str, Any]] = [{"log_type_filter": {"types": ["UpstreamEnd"]}}, _status(503)]
    said = _when(f"{_ROUTED} && '{SATURATED_HEADER}' in response.headers")
    return [
        {
            "name": "saturated",
            "filter": {"and_filter": {"filters": [*conditions, said]}},
            "typed_config": _stats(counters=[_one("saturated", _tags())]),
        }
    ]


def _in_metadata(namespace: str, key: str) -> str:
    found = f"metadata.filter_metadata['{namespace}']"
    return f"('{namespace}' in metadata.filter_metadata && '{key}' in {found})"


# Each event of a stream reports what came so far, and the last one did not come: what was in flight is not reported.
_RUNNING = f"({_in_metadata(BOUND_METADATA, 'running')} && metadata.filter_metadata['{BOUND_METADATA}']['running'])"
_STILL_RUNNING = {
    "metadata_filter": {
        "matcher": {"filter": BOUND_METADATA, "path": [{"key": "running"}], "value": {"bool_match": True}},
        "match_if_key_not_found": False,
    }
}


def _not_reported(key: str) -> dict[str, Any]:
    """Envoy's own filter: the expressions behind it are not evaluated for answers that reported their usage."""
    matcher = {"filter": USAGE_METADATA, "path": [{"key": key}], "value": {"present_match": True}, "invert": True}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": True}}


def _computed(name: str, expression: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    return {"stat": {"name": name, "tags": tags}, "value_format": f"%CEL({expression})%"}


def _bounds(tags: list[dict[str, str]], *, prompt: str, completion: str, unbounded: str) -> dict[str, Any]:
    return _stats(
        counters=[
            _one("estimated_attempts", tags),
            _computed("estimated_prompt_tokens", prompt, tags),
            _computed("estimated_completion_tokens", completion, tags),
            _computed("unbounded_attempts", f"{unbounded} ? 1 : 0", tags),
        ]
    )


def estimates() -> dict[str, Any]:
    """What the last attempt cost at most, where its answer did not say: logged when the request ends."""
    no_prompt = f"!{_in_metadata(USAGE_METADATA, 'prompt')}"
    no_completion = f"((!{_in_metadata(USAGE_METADATA, 'completion')} || {_RUNNING}) && {_COMPLETION} != '0')"
    streamed = _in_metadata(BOUND_METADATA, "stream")
    # A stream is bounded by what passed, a whole answer by its length, and both by the limit that the client set.
    seen = f"({streamed} ? int(metadata.filter_metadata['{BOUND_METADATA}']['stream']) : response.size)"
    bounded = f"({streamed} || {_WHOLE})"
    limited = f"{_COMPLETION} != '{NO_BOUND}'"
    limit = f"int({_COMPLETION})"
    completion = (
        f"!{no_completion} ? 0 : {bounded} ? ({limited} && {limit} < {seen} ? {limit} : {seen}) : "
        f"{limited} ? {limit} : 0"
    )
    return {
        "name": "estimates",
        "filter": {
            "and_filter": {
                "filters": [
                    {"or_filter": {"filters": [_not_reported("prompt"), _not_reported("completion"), _STILL_RUNNING]}},
                    _when(f"{_SENT} && ({no_prompt} || {no_completion}) && ({_MAY_HAVE_COST})"),
                ]
            }
        },
        "typed_config": _bounds(
            _tags(_CONSUMER, reason=f"%CEL({_WHOLE} ? 'unreported' : 'aborted')%"),
            prompt=f"{no_prompt} && {_PROMPT} != '{NO_BOUND}' ? int({_PROMPT}) : 0",
            completion=completion,
            unbounded=f"{no_prompt} && {_PROMPT} == '{NO_BOUND}' || {no_completion} && !({limited}) && !{bounded}",
        ),
    }


def lost() -> list[dict[str, Any]]:
    """The router's own loggers: what attempts cost at most of whose answer the client saw nothing."""
    most = f"xds.route_metadata.filter_metadata['{METADATA}']['cascade']"
    replaced = (
        "response.code >= 200 && response.code < 300 && response.headers['x-low-confidence'] == 'true' && "
        f"int(request.headers['x-envoy-attempt-count']) < int({most})"
    )
    sent = f"{_SENT} && response.size > 0"  # to an upstream, what it was sent
    unanswered = [{"response_flag_filter": {"flags": list(_LOST_FLAGS)}}, _status(0), _when(sent)]
    # Between here and a provider stands the relay, which says in a 503 how an attempt ended.
    flags = f"response.headers['{UNREACHED_HEADER}'].matches('(^|,)({'|'.join(_LOST_FLAGS)})(,|$)')"
    relayed = [_status(503), _when(f"{sent} && {flags}")]
    bounds = _bounds(
        _tags(_CONSUMER_OF_ATTEMPT, reason="discarded"),
        prompt=f"{_PROMPT} != '{NO_BOUND}' ? int({_PROMPT}) : 0",
        completion=f"{_COMPLETION} != '{NO_BOUND}' ? int({_COMPLETION}) : 0",
        unbounded=f"{_PROMPT} == '{NO_BOUND}' || {_COMPLETION} == '{NO_BOUND}'",
    )
    end = {"log_type_filter": {"types": ["UpstreamEnd"]}}
    return [
        {"name": name, "filter": {"and_filter": {"filters": [end, *condition]}}, "typed_config": bounds}
        for name, condition in (
            ("replaced", [_when(f"{_SENT} && {replaced}")]),
            ("unanswered", unanswered),
            ("relayed", relayed),
        )
    ]


def lines() -> dict[str, Any]:
    """One JSON line per request on standard output: who, where to, how long, how many tokens; never what was said."""
    fields = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        # What clients choose is cut: a line stays a line, whatever they send.
        "path": f"%FILTER_STATE({METADATA}.path:PLAIN):256%",
        "model": f"%DYNAMIC_METADATA({METADATA}:model):256%",
        **_LABELS,
        **_CONSUMER,
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "upstream": "%UPSTREAM_HOST%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": _FIRST_BYTE,
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "prompt_tokens": f"%DYNAMIC_METADATA({USAGE_METADATA}:prompt)%",
        "completion_tokens": f"%DYNAMIC_METADATA({USAGE_METADATA}:completion)%",
    }
    log = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
    return extension("stdout", log, log_format={"json_format": fields, "omit_empty_values": True})
