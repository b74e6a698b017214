"""What the gateway grants one client: time, connections, streams, headers; and the name that a request keeps.

Bounds for bodies are on the request's side only: none of them ends a stream of answers, however long it lasts.
"""

from typing import Any

from tierwise.render.envoy.fields import extension, seconds
from tierwise.render.envoy.options import GatewayOptions

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 128
"""Characters of a client's request id that are kept; it stands in every log line, span and attempt."""

MAX_HEADERS = 100
MAX_HEADERS_KIB = 32
MAX_STREAMS = 100
"""Requests at a time on one HTTP/2 connection."""

HEADERS_SECONDS = 10.0
CONNECTION_IDLE_SECONDS = 620.0
"""Longer than load balancers keep a connection (600 s at most): if they close first, no request gets lost."""

_WINDOW = 1024 * 1024


def bounds(options: GatewayOptions) -> dict[str, Any]:
    """Fields of the connection manager."""
    return {
        "request_headers_timeout": seconds(HEADERS_SECONDS),
        # From the first byte to the last one of the request. It rests as soon as that is in: answers are not bounded.
        "request_timeout": seconds(options.body_timeout_seconds),
        "stream_idle_timeout": seconds(options.idle_timeout_seconds),
        "max_request_headers_kb": MAX_HEADERS_KIB,
        "common_http_protocol_options": {
            "headers_with_underscores_action": "REJECT_REQUEST",
            "idle_timeout": seconds(CONNECTION_IDLE_SECONDS),
            "max_headers_count": MAX_HEADERS,
        },
        "http2_protocol_options": {
            "max_concurrent_streams": MAX_STREAMS,
            "initial_stream_window_size": _WINDOW,
            "initial_connection_window_size": 4 * _WINDOW,
            # A client that is gone without a word holds nothing for long.
            "connection_keepalive": {"interval": "30s", "timeout": "20s"},
        },
    }


def request_id() -> dict[str, Any]:
    """Fields of the connection manager: the client's id is kept as it is, or one is made, and the client is told."""
    return {
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": extension(
                "uuid",
                "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                # Else a digit of the client's id would be overwritten, and its choice would decide what is traced.
                pack_trace_reason=False,
                use_request_id_for_trace_sampling=False,
            )["typed_config"]
        },
    }


def short_request_id() -> dict[str, Any]:
    """A header mutation for clients' requests: one id, of bounded length."""
    value = f"%REQ({REQUEST_ID}):{MAX_REQUEST_ID}%"
    return {"append": {"header": {"key": REQUEST_ID, "value": value}, "append_action": "OVERWRITE_IF_EXISTS"}}
