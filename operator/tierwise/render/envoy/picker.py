"""Tiers whose replica an endpoint picker of the user's chooses, as the Gateway API Inference Extension defines it.

The picker is asked by a filter (ext_proc), whose failure ends the request where it happens: the body is on its way,
and cannot be sent again. So the way leads through a listener inside of Envoy (no socket, no copy of the bytes), behind
which the failure is an answer to a router that still has the body:

- `namespace/tier` sets the request up for the tier, as for any, and leads to the listener, which asks the picker and
  goes on to the replicas. When none was picked, it answers as for a tier that was not reached (FailClose).
- `namespace/tier@open` stands between, with FailOpen: the listener tries it twice, and the second time does not ask.
- `namespace/tier@replicas` are the replicas: the one that was picked, or else the least busy.
- `namespace/tier@picker` is the picker, a Service in the tier's namespace. Calls to all pickers go by a second
  listener, since the filter, which belongs to no tier, has one address: a header says which picker, and its cluster
  how long it has.

As a filter of a cluster ext_proc would need no second listener, but Envoy 1.40 crashes when a call fails while a large
body arrives.

Requests of other tiers never come here, so no prompt of theirs reaches the picker. It chooses a replica, and
may change the body, which is its own tier's; it sets no other header and gives no answer of its own.
"""

from typing import Any

from tierwise.api.in_cluster import EndpointPicker, PickerFailure
from tierwise.api.model_tier import ModelTier
from tierwise.core.world import Key
from tierwise.render.envoy import relay, upstream
from tierwise.render.envoy.bundle import Resource
from tierwise.render.envoy.fields import (
    DESTINATION_HEADER,
    PICK_AGAIN_HEADER,
    PICK_HEADER,
    PICK_STEP_HEADER,
    PICKER_HEADER,
    PICKER_LISTENER,
    ROUTE_HEADER,
    UNREACHED_HEADER,
    extension,
    seconds,
    typed,
)
from tierwise.render.envoy.options import GatewayOptions
from tierwise.render.envoy.protos import CLUSTER

NOT_PICKED = "NP"
"""In `UNREACHED_HEADER`, where Envoy's own flags stand else."""

CALLS = "tierwise_picker_calls"
"""Listener by which pickers are called, and the cluster that leads to it. No tier's cluster has a name without `/`."""

# What the listener does with a request: try `@open`, twice; ask, and go on without a pick; ask, and not; not ask.
_TRY, _ASK, _ASK_OR_FAIL, _DO_NOT_ASK = "try", "ask", "ask-or-fail", "do-not-ask"
_FILTER = "tierwise.picker"
_STATE = "tierwise.asked"  # not the filter's own name, under which it keeps state too
_MANY = 1_000_000
_EXT_PROC = "envoy.extensions.filters.http.ext_proc.v3"


def of(tier: ModelTier) -> EndpointPicker | None:
    """A tier's picker."""
    inside = tier.spec.in_cluster
    return inside.endpoint_picker_ref if inside is not None else None


def host_of(namespace: str, ref: EndpointPicker) -> str:
    """The picker's Service, in the tier's namespace."""
    return f"{ref.name}.{namespace}.svc.cluster.local"


def replicas(cluster: str) -> str:
    """Name of the cluster with the replicas, of the tier's cluster."""
    return f"{cluster}@replicas"


def service(cluster: str) -> str:
    """Name of the cluster that leads to the picker, of the tier's cluster."""
    return f"{cluster}@picker"


def steps(cluster: str, ref: EndpointPicker, removed: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The clusters on the way that lead to the inner listener, each with the filter that says where to go from there.

    Args:
        cluster: the tier's.
        ref: its picker.
        removed: headers that no tier but their owner may see.
    """
    first = f"{cluster}@open"
    on = ((PICK_HEADER, replicas(cluster)), (PICKER_HEADER, service(cluster)))
    whose = (ROUTE_HEADER, upstream.OF_ROUTE)
    if ref.failure_mode is PickerFailure.CLOSE:
        return {cluster: upstream.reset(removed, (*on, whose, (PICK_STEP_HEADER, _ASK_OR_FAIL)))}
    # Attempts share headers: the first does as the tier's cluster said, and says what the second does.
    again = ((PICK_STEP_HEADER, f"%REQ({PICK_AGAIN_HEADER})%"), (PICK_AGAIN_HEADER, _DO_NOT_ASK))
    kept = (ROUTE_HEADER, f"%FILTER_STATE({relay.ROUTE_STATE}:PLAIN)%")
    begin = ((PICK_HEADER, first), (PICK_STEP_HEADER, _TRY), (PICK_AGAIN_HEADER, _ASK))
    return {
        cluster: upstream.reset(removed, (*begin, whose)),
        first: upstream.reset(removed, (*on, kept, *again), read=PICK_AGAIN_HEADER),
    }


def balancer(otherwise: dict[str, Any]) -> dict[str, Any]:
    """The replica that the picker named, while it is one of the tier's; else as without a picker."""
    return extension(
        "override_host",
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"header": DESTINATION_HEADER}],
        fallback_policy={"policies": [{"typed_extension_config": otherwise}]},
    )


def cluster(key: Key, ref: EndpointPicker, dns: dict[str, Any]) -> Resource:
    """Leads to the picker: HTTP/2, in the tier's namespace only.

    Args:
        key: of the tier.
        ref: its picker.
        dns: type of a cluster whose hosts are all addresses of its names.
    """
    address = {"socket_address": {"address": host_of(key.namespace, ref), "port_value": ref.port}}
    return {
        **_grpc(service(str(key)), address),
        "alt_stat_name": f"{key.namespace}_{key.name}_picker",
        "cluster_type": dns,
        # In the contract's mode of the body there is no time-out of a message, and calls have none of their own.
        # A call ends with the picker's answer: no stream of a replica is cut by it.
        "typed_extension_protocol_options": _http2(max_stream_duration=seconds(ref.timeout.seconds)),
    }


def calls_cluster() -> Resource:
    """Leads to the listener by which pickers are called."""
    address = {"envoy_internal_address": {"server_listener_name": CALLS}}
    return {**_grpc(CALLS, address), "type": "STATIC", "typed_extension_protocol_options": _http2()}


def _grpc(name: str, address: dict[str, Any]) -> Resource:
    most = {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": _MANY}
    return {
        "@type": CLUSTER,
        "name": name,
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _http2(**common: str) -> dict[str, Any]:
    options: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
    if common:
        options["common_http_protocol_options"] = common
    return {upstream.HTTP_OPTIONS: typed(upstream.HTTP_OPTIONS, **options)}


def listeners(options: GatewayOptions) -> dict[str, Resource]:
    """The LDS resources by name. They depend on the gateway's options only."""
    replies = {
        "mappers": [
            relay.unreached({"response_flag_filter": {"flags": relay.FLAGS}}, "%RESPONSE_FLAGS%"),
            relay.unreached(_own_failure(), NOT_PICKED),
        ]
    }
    filters = [_keep_picker(), _processor()]
    made = relay.inner_listener(PICKER_LISTENER, "pickers", filters, _routes(options), replies, options)
    calls = relay.inner_listener(CALLS, "picker_calls", [], [_call()], {}, options)
    # What a router can send again, and waits for the picker meanwhile.
    bound = {"per_connection_buffer_limit_bytes": options.max_body_bytes}
    return {PICKER_LISTENER: {**made, **bound}, CALLS: {**calls, **bound}}


def _routes(options: GatewayOptions) -> list[dict[str, Any]]:
    common: dict[str, Any] = {
        "cluster_header": PICK_HEADER,
        "timeout": "0s",
        "idle_timeout": seconds(options.idle_timeout_seconds),
    }
    again = {
        "retry_on": "retriable-headers",
        "retriable_headers": [{"name": UNREACHED_HEADER, "string_match": {"exact": NOT_PICKED}}],
        "num_retries": 1,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    }
    not_asked = {"typed_per_filter_config": {_FILTER: typed(f"{_EXT_PROC}.ExtProcPerRoute", disabled=True)}}
    unnamed = {"name": DESTINATION_HEADER, "present_match": False}
    return [
        {"match": _at(_TRY), "route": {**common, "retry_policy": again}, **not_asked},
        {"match": _at(_DO_NOT_ASK), "route": common, **not_asked},
        # Chosen again when the picker has answered. A reply of this listener's own: see `_own_failure`.
        {"match": _at(_ASK_OR_FAIL, unnamed), "direct_response": {"status": 503}},
        {"match": {"prefix": "/"}, "route": common},
    ]


def _at(step: str, *more: dict[str, Any]) -> dict[str, Any]:
    return {"prefix": "/", "headers": [{"name": PICK_STEP_HEADER, "string_match": {"exact": step}}, *more]}


def _own_failure() -> dict[str, Any]:
    """Replies of this listener alone, and not those that the filter before it has taken."""
    status = {"default_value": 500, "runtime_key": "tierwise.picker_status_500"}
    return {"status_code_filter": {"comparison": {"op": "GE", "value": status}}}


def _call() -> dict[str, Any]:
    return {"match": {"prefix": "/"}, "route": {"cluster_header": PICKER_HEADER, "timeout": "0s"}}


def _keep_picker() -> dict[str, Any]:
    text = {"text_format_source": {"inline_string": f"%REQ({PICKER_HEADER})%"}}
    kept = {"object_key": _STATE, "factory_key": "envoy.string", "format_string": text}
    return extension(
        "tierwise.whose", "envoy.extensions.filters.http.set_filter_state.v3.Config", on_request_headers=[kept]
    )


def _processor() -> dict[str, Any]:
    """Sends headers and body of a request to the picker, which answers with a header that names the replica."""
    whose = {"key": PICKER_HEADER, "value": f"%FILTER_STATE({_STATE}:PLAIN)%"}
    return extension(
        _FILTER,
        f"{_EXT_PROC}.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": CALLS}, "initial_metadata": [whose]},
        failure_mode_allow=False,
        status_on_error={"code": "ServiceUnavailable"},
        processing_mode={
            "request_header_mode": "SEND",
            # As the contract has it: the picker answers the headers only when it has seen the body.
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_header_mode": "SKIP",
            "response_body_mode": "NONE",
            "response_trailer_mode": "SKIP",
        },
        route_cache_action="CLEAR",
        forward_rules={"disallowed_headers": {"patterns": [{"prefix": "x-tierwise-"}]}},
        mutation_rules={"disallow_all": True, "allow_expression": {"regex": f"^{DESTINATION_HEADER}$"}},
        disable_immediate_response=True,
    )
